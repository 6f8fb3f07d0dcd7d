"""Drafts: from which first noise will every entity be in the picture? A few coarse steps tell, before it is drawn.

A draft goes down from the run's own first noise to the highest noise level at which the maps tell, with the host's own
denoiser, and is scored by its weakest entity's :func:`presence`. The noise of the best draft is then drawn as ever.
Where the run is to be guided, so is the draft: an unguided one tells which seed does well without guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .host_pass import ConditionalRows, reading_beside
from .maps import MapReader
from .memory import give_back, is_out_of_memory
from .presence import lowest, presence
from .schedule import Schedule

LEVELS = (7.6, 3.6, 1.6)
"""Noise levels of a draft's passes after that on the first noise; the maps are read at the last."""

GUIDED_LEVELS = (6.0, 3.35)
"""Those of a draft that is moved as the run will be (``study drafts``). So few tell as well as more do, and read lower
it tells no more of the run, whose own steps have gone another way by then [I]."""

Denoise = Callable[[Tensor, float], Tensor]
"""Latents ``x = x0 + sigma n`` ``[rows, ...]`` and their noise level -> the predicted x0, guided as the host guides."""

Move = Callable[[Tensor, int], Tensor]
"""Latents ``x`` before one of a draft's passes, and its number -> as guidance moves them there."""

Score = Callable[[Tensor], Tensor]
"""Maps ``[1, entities, h, w]`` -> ``[1, entities]``."""

T = TypeVar("T")


class MoveFailed(Exception):
    """Guidance failed within a draft; its cause says why. Drafts with and without it can't be compared."""


@dataclass(frozen=True)
class Draft:
    """What one draft tells of one picture."""

    scores: dict[str, float]
    """Entity -> :func:`presence` of its map, in [0, 1]; none where the prompt names none."""
    x0: Tensor
    """The picture that it predicts: latents ``[channels, h, w]``."""
    sigma: float = LEVELS[-1]
    """The noise level at which it was read."""
    moves: int = 0
    """Of its passes, how many guidance moved, by a gradient each."""

    @property
    def weakest(self) -> float:
        """The :func:`lowest` score."""
        return lowest(self.scores.values())


def levels(first: float, guided: bool = False) -> list[float]:
    """Noise levels of a draft's passes, from the run's ``first`` one on; one alone where nothing is left to tell."""
    return [first, *(level for level in (GUIDED_LEVELS if guided else LEVELS) if level < first)]


def passes(first: float, run: Sequence[float], schedule: Schedule) -> tuple[list[float], list[list[int]]]:
    """Noise levels of a draft's passes, from the run's ``first`` one on, and of each the steps as which it is moved.

    ``run``: the noise level of each of the run's steps; none where nothing moves it. Where guidance does not begin
    before guided drafts are read, they are as without it: there an unmoved draft does not tell yet.
    """
    guided = levels(first, guided=True)
    pooled = schedule.pooled(run, guided)
    if any(pooled):
        return guided, pooled
    unguided = levels(first)
    return unguided, [[] for _ in unguided]


@torch.no_grad()
def draft(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], model: nn.Module, reader: MapReader,
    rows: Callable[[], ConditionalRows], move: Move | None = None, fewest: int = 1, score: Score = presence,
) -> list[Draft]:  # fmt: skip
    """Of each row of ``x``, at noise level ``sigmas[0]``, its draft by Euler's steps, which are DDIM's.

    ``model`` is the denoiser that ``denoise`` calls, ``rows`` tells which rows of its calls are conditional. Raises
    what ``denoise`` raises, MoveFailed for what ``move`` does, and what hinders the reading of the maps; the end of
    memory in ``move`` as it is where there are more than ``fewest`` rows, so that fewer can be drafted at once.
    """
    moves = 0
    for k, sigma in enumerate(sigmas):
        moved = _moved(x, k, move, fewest)
        moves, x = moves + (moved is not x), moved
        if sigma != sigmas[-1]:
            x0 = denoise(x, sigma)
            x = x0 + (x - x0) * (sigmas[k + 1] / sigma)
    with reading_beside(model, reader, rows) as passed:
        x0 = denoise(x, sigmas[-1])
    maps = passed.maps(x.shape[-2:], reader.named) if reader.named else {}
    scores = {row: score(own[None])[0].tolist() for row, own in maps.items()}
    return [
        Draft(dict(zip(plan.names, scores.get(row, ()))), x0[row], sigmas[-1], moves)
        for row, plan in enumerate(reader.images)
    ]


def _moved(x: Tensor, k: int, move: Move | None, fewest: int) -> Tensor:
    if move is None:
        return x
    try:
        return move(x, k)
    except Exception as error:
        if is_out_of_memory(error) and len(x) > fewest:
            raise
        raise MoveFailed from error


def in_groups(make: Callable[[Sequence[int]], Sequence[T]], count: int, at_once: int) -> list[T]:
    """``make`` of all numbers below ``count``, so many at once; half as many where memory has ended.

    Raises what ``make`` raises, and the end of memory where one alone does not fit.
    """
    found: list[T] = []
    while len(found) < count:
        group = range(len(found), min(count, len(found) + at_once))
        try:
            found += make(group)
            continue
        except Exception as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
        at_once = len(group) // 2
        give_back()  # outside of the handler, whose error holds on to the failed pass
    return found


def best(drafts: Sequence[Draft]) -> int:
    """Number of the draft whose weakest entity is surest; of equals the first."""
    return max(range(len(drafts)), key=lambda k: drafts[k].weakest)
