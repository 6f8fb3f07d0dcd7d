"""Processes of this machine, each with a local model in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from .backends.base import wrong_checkpoint
from .fleet import BackendOpener, Outcome
from .plan import Job

T = TypeVar("T")
R = TypeVar("R")
_backend: Any = None


def workers_of(jobs: int) -> int:
    """So many processes as ``--jobs`` says; 0: one a core. Raises ValueError by name."""
    if not 0 <= jobs <= 64:
        raise ValueError(f"jobs: {jobs} is not allowed; 0 to 64")
    return jobs or min(64, os.cpu_count() or 1)


def _start(opener: BackendOpener, threads: int) -> None:
    global _backend
    import torch

    torch.set_num_threads(threads)
    _backend = opener.open("")


def _work(work: Callable[[Any, T], R], task: T) -> R:
    return work(_backend, task)


def spread(
    work: Callable[[Any, T], R], tasks: Sequence[T], opener: BackendOpener, workers: int, in_order: bool = True
) -> Generator[tuple[T, R], None, None]:
    """``work(backend, task)`` of every task, in this process for one worker; in the tasks' order or as they come.

    ``work`` is a module-level function and gives plain data. Raises ValueError where a process has died.
    """
    if workers == 1:
        for task in tasks:
            yield task, work(opener.open(""), task)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    # A fork of a process in which torch has drawn can hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(opener, threads)) as pool:
        futures = {pool.submit(_work, work, task): task for task in tasks}
        try:
            for future in futures if in_order else as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise ValueError(
                "workers: a process that draws has died, by a kill or for want of memory. What is drawn is kept; "
                "the same command goes on"
            ) from None
        finally:
            for future in futures:
                future.cancel()


def _outcome(backend: Any, jobs: Sequence[Job]) -> Outcome:
    try:
        return Outcome(jobs, drawn=backend.draw(jobs))
    except ValueError as error:
        return Outcome(jobs, problem=str(error))


def draw_all(opener: BackendOpener, batches: Sequence[Sequence[Job]]) -> Generator[Outcome, None, None]:
    """Each batch's outcome as it comes, by the plan's number of workers. Raises ValueError when it can't go on."""
    for _, outcome in spread(_outcome, batches, opener, opener.part.workers, in_order=False):
        if problem := wrong_checkpoint(outcome.drawn, opener.expected, "a worker"):
            raise ValueError(problem)
        yield outcome
