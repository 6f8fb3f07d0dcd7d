"""Prompts and seeds of the studies on the embedded model, and drawing them on several cores."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch

from ...core.presence import Curve
from ...hosts import curves
from ...hosts.checkpoints import CHECKPOINT, open_pipeline
from ...hosts.diffusers import Picture, generate
from ...settings import PRESENCE, Settings
from ..model.detector import Verdict, judge
from ..model.scenes import ENTITIES, HELD_OUT_PAIRS, caption
from .trials import TRIALS

SPLITS = ("tune", "report", "unseen")
"""``tune``: every other set of entities, where defaults are looked for; ``report``: the other half, with
other seeds; ``unseen``: sets with a pair that training never drew together, never tuned on."""


@dataclass(frozen=True)
class Case:
    """One picture to draw: the named entities, in the caption's order, and the seed of its noise."""

    entities: tuple[str, ...]
    seed: int


def sets_of(split: str, count: int) -> list[frozenset[str]]:
    """The sets of ``count`` entities that a split draws from. Raises ValueError for an unknown split or count."""
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    if not 1 <= count <= 3:
        raise ValueError(f"count: {count} is not allowed; 1 to 3 entities")
    sets = [frozenset(group) for group in itertools.combinations(ENTITIES, count)]
    seen = [s for s in sets if not any(pair <= s for pair in HELD_OUT_PAIRS)]
    if count == 1:
        return seen
    return {"tune": seen[0::2], "report": seen[1::2], "unseen": [s for s in sets if s not in seen]}[split]


def cases(split: str, count: int, size: int, first_seed: int | None = None) -> list[Case]:
    """``size`` cases of ``count`` entities, always the same ones; their seeds from ``first_seed`` on, or the split's.

    Raises ValueError for an unknown split or count, and for seeds that a host could not take.
    """
    chosen = sets_of(split, count)
    rng = np.random.default_rng([count, SPLITS.index(split)])
    first = 100_000 * (SPLITS.index(split) + 1) + 10_000 * count if first_seed is None else first_seed
    if not 0 <= first <= 2**32 - size:
        raise ValueError(f"first-seed: {first} is not allowed; 0 to {2**32 - size} for {size} images")
    found = []
    for i in range(size):
        names = sorted(chosen[rng.integers(len(chosen))])
        rng.shuffle(names)
        found.append(Case(tuple(names), first + i))
    return found


T = TypeVar("T")
R = TypeVar("R")
_pipe: Any = None


def _start(checkpoint: str | None, threads: int) -> None:
    global _pipe
    torch.set_num_threads(threads)
    _pipe = open_pipeline(None if checkpoint is None else checkpoint)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task:
    """Some cases to be drawn one way; ``key`` comes back with the result."""

    key: Any
    cases: tuple[Case, ...]
    settings: Settings
    steps: int = 20
    cfg: float = 3.0
    observe: bool = False
    keep_maps: bool = False
    trial: str = ""
    """Of :data:`TRIALS`, whose loss stands in the settings' place."""


@lru_cache
def shipped_curve() -> Curve | None:
    """The embedded model's, for what goes by presence."""
    return curves.find(hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest())


def draw(pipe: Any, task: Task) -> tuple[list[Verdict], Picture]:
    """Draw and judge."""
    picture = generate(
        pipe,
        [caption(list(case.entities)) for case in task.cases],
        [case.entities for case in task.cases],
        task.settings,
        seeds=[case.seed for case in task.cases],
        steps=task.steps,
        guidance_scale=task.cfg,
        observe=task.observe,
        keep_maps=task.keep_maps,
        curve=shipped_curve() if task.settings.stop == PRESENCE or task.settings.look == "insist" else None,
        loss=TRIALS[task.trial] if task.trial else None,
    )
    if picture.stood_aside:
        raise RuntimeError(f"guidance stood aside {picture.stood_aside}")
    verdicts = [judge(np.asarray(image), list(case.entities)) for image, case in zip(picture.images, task.cases)]
    return verdicts, picture


def _work(work: Callable[[Any, T], R], task: T) -> R:
    return work(_pipe, task)


def draw_all(
    work: Callable[[Any, T], R], tasks: Sequence[T], jobs: int = 0, checkpoint: str | None = None
) -> Iterator[tuple[T, R]]:
    """``work(pipe, task)`` of every task on ``jobs`` processes (0: one a core), as the results come, in order.

    ``work`` is a module-level function and gives plain data.
    """
    jobs = jobs or os.cpu_count() or 1
    with ProcessPoolExecutor(jobs, initializer=_start, initargs=(checkpoint, 1)) as pool:
        futures = [pool.submit(_work, work, task) for task in tasks]
        try:
            for task, future in zip(tasks, futures):
                yield task, future.result()
        finally:
            for future in futures:
                future.cancel()


def chunks(items: Sequence[Case], size: int) -> Iterator[tuple[Case, ...]]:
    """Consecutive groups of at most ``size``."""
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])
