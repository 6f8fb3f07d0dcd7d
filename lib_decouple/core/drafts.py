"""Drafts: from which first noise will every entity be in the picture? A few coarse steps tell, before it is drawn.

A draft goes down from the run's own first noise to the highest noise level at which the maps tell, with the host's own
denoiser, and is scored by its weakest entity's :func:`presence`. The noise of the best draft is then drawn as ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .host_pass import ConditionalRows, reading_beside
from .maps import MapReader
from .memory import give_back, is_out_of_memory
from .presence import lowest, presence

LEVELS = (7.6, 3.6, 1.6)
"""Noise levels of a draft's passes after that on the first noise; the maps are read at the last."""

Denoise = Callable[[Tensor, float], Tensor]
"""Latents ``x = x0 + sigma n`` ``[rows, ...]`` and their noise level -> the predicted x0, guided as the host guides."""

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """What one draft tells of one picture."""

    scores: dict[str, float]
    """Entity -> :func:`presence` of its map, in [0, 1]; none where the prompt names none."""
    x0: Tensor
    """The picture that it predicts: latents ``[channels, h, w]``."""
    sigma: float = LEVELS[-1]
    """The noise level at which it was read."""

    @property
    def weakest(self) -> float:
        """The :func:`lowest` score."""
        return lowest(self.scores.values())


def levels(first: float) -> list[float]:
    """Noise levels of a draft's passes, from the run's ``first`` one on; one alone where nothing is left to tell."""
    return [first, *(level for level in LEVELS if level < first)]


@torch.no_grad()
def draft(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], model: nn.Module, reader: MapReader,
    rows: Callable[[], ConditionalRows],
) -> list[Draft]:  # fmt: skip
    """Of each row of ``x``, at noise level ``sigmas[0]``, its draft by Euler's steps, which are DDIM's.

    ``model`` is the denoiser that ``denoise`` calls, ``rows`` tells which rows of its calls are conditional. Raises
    what ``denoise`` raises, and what hinders the reading of the maps.
    """
    for sigma, after in itertools.pairwise(sigmas):
        x0 = denoise(x, sigma)
        x = x0 + (x - x0) * (after / sigma)
    with reading_beside(model, reader, rows) as passed:
        x0 = denoise(x, sigmas[-1])
    maps = passed.maps(x.shape[-2:], reader.named) if reader.named else {}
    scores = {row: presence(own[None])[0].tolist() for row, own in maps.items()}
    return [
        Draft(dict(zip(plan.names, scores.get(row, ()))), x0[row], sigmas[-1]) for row, plan in enumerate(reader.images)
    ]


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
