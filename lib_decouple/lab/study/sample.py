"""Drawing and judging the embedded model's prompts on several cores, for what needs more than a picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch

from ...core.presence import Curve
from ...hosts import curves
from ...hosts.checkpoints import CHECKPOINT, open_pipeline
from ...hosts.diffusers import Picture, generate
from ...settings import PRESENCE, Settings
from ..evaluate.prompts.splits import CFG, STEPS, Case
from ..evaluate.trials import TRIALS
from ..model.judge import Verdict, judged
from ..model.scenes import joined

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
