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
from ..model.judge import Verdict, judged
from ..model.scenes import COMPANY, joined
from ..model.sprites import THINGS
from .trials import TRIALS

STEPS, CFG = 20, 4.0
"""The embedded model's own number of steps and guidance scale."""

SPLITS = ("tune", "report", "unseen")
"""``tune``: every other set of entities, where defaults are looked for; ``report``: the other half, with
other seeds; ``unseen``: sets with a pair that training never drew together, never tuned on (most of all sets)."""


@dataclass(frozen=True)
class Case:
    """One picture to draw: the named entities, in the caption's order, and the seed of its noise."""

    entities: tuple[str, ...]
    seed: int


def sets_of(split: str, count: int) -> list[frozenset[str]]:
    """The sets of ``count`` entities that a split draws from. Raises ValueError for an unknown split or count.

    Training drew only one set of four, so that "tune" and "report" end at three.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    most = 4 if split == "unseen" else 3
    if not 1 <= count <= most:
        raise ValueError(f"count: {count} is not allowed; 1 to {most} entities")
    sets = [frozenset(group) for group in itertools.combinations(THINGS, count)]
    if count == 1:
        return sets
    seen = [s for s in sets if all(frozenset(pair) in COMPANY for pair in itertools.combinations(s, 2))]
    if split == "unseen":
        return sorted(set(sets) - set(seen), key=sorted)
    return seen[0::2] if split == "tune" else seen[1::2]


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
    steps: int = STEPS
    cfg: float = CFG
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
        [joined(case.entities) for case in task.cases],
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
    return judged(picture.images, [case.entities for case in task.cases]), picture


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
