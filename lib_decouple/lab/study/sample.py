"""Drawing the embedded model's own pictures for what needs more than the picture, and judging them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...hosts.diffusers import Picture
from ...settings import Settings
from ..evaluate.fleet import BackendOpener
from ..evaluate.judges import Options, named
from ..evaluate.judges.base import Item
from ..evaluate.judges.drawn import DrawnJudge
from ..evaluate.plan import BackendPart, Job, Sampling
from ..evaluate.pool import spread, workers_of
from ..evaluate.prompts import of_split
from ..evaluate.prompts.splits import CFG, STEPS

R = TypeVar("R")
BATCH = 25


@dataclass(frozen=True)
class Task:
    """Some pictures to be drawn one way; ``key`` comes back with the result."""

    key: Any
    jobs: tuple[Job, ...]
    more: dict[str, Any] = field(default_factory=dict)
    """What a ``Drawing`` is told besides, such as ``observe``."""


def embedded(steps: int = STEPS) -> BackendOpener:
    """The embedded model, as ``evaluate`` opens it."""
    return BackendOpener(BackendPart("embedded"), Sampling(steps, CFG), Path())


def tasks_of(
    key: Any, split: str, count: int, size: int, settings: Settings | None = None, **more: Any
) -> Iterator[Task]:
    """``size`` pictures of a split in batches, plain when no settings are given. Raises ValueError by name."""
    how = settings or Settings()
    jobs = [Job(prompt, "", how, seed) for prompt, seed in of_split(split, count, size)]
    for start in range(0, size, BATCH):
        yield Task(key, tuple(jobs[start : start + BATCH]), more)


def draw(backend: Any, task: Task) -> tuple[list[tuple[str, ...]], Picture]:
    """Draw and judge: of each image the entities that are missing. Raises RuntimeError when guidance stood aside."""
    picture = backend.picture(task.jobs, **task.more)
    if picture.stood_aside:
        raise RuntimeError(f"guidance stood aside {picture.stood_aside}")
    (judge,), _ = named("drawn", Options())
    made = zip(picture.images, task.jobs)
    items = [Item(image, job.prompt.text, job.prompt.entities) for image, job in made]
    found = zip(items, judge.score(items))
    return [
        tuple(name for name in item.entities if scores[name] < DrawnJudge.threshold) for item, scores in found
    ], picture


def draw_all(
    work: Callable[[Any, Task], R], tasks: Sequence[Task], jobs: int = 0, steps: int = STEPS
) -> Iterator[tuple[Task, R]]:
    """``work(backend, task)`` of every task on ``jobs`` processes (0: one a core), as they come, in order."""
    yield from spread(work, tasks, embedded(steps), workers_of(jobs))
