"""What each way loses: the same prompts and noise drawn in every way on the embedded model, and judged."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...evaluate import pairs
from ...evaluate.backends import Drawn
from ...evaluate.backends.base import as_png
from ...evaluate.backends.embedded import Embedded
from ...evaluate.fleet import BackendOpener
from ...evaluate.judge import judge_all
from ...evaluate.judges import Options, named
from ...evaluate.plan import ArmPart, BackendPart, Job, Plan, Sampling
from ...evaluate.pool import workers_of
from ...evaluate.prompts import of_split
from ...evaluate.prompts.splits import CFG, STEPS, Case
from ...evaluate.run import Invocation, carry_out
from ...evaluate.store import NAME, Store
from .arms import ARMS, draw
from .counting import run_cost
from .rival import rival_class
from .ways import RUN, SAME_ON_SD15, WAYS

Record = dict[str, Any]


class Ways(Embedded):
    """The embedded model, drawn as the jobs' arm says."""

    def _drawn(self, jobs: Sequence[Job]) -> list[Drawn]:
        tokens = [self.tokens(job.prompt) for job in jobs]
        started = time.perf_counter()
        group = [Case(job.prompt.entities, job.seed) for job in jobs]
        drawn = draw(self.pipe, ARMS[jobs[0].arm], group, self.sampling.steps)
        seconds = (time.perf_counter() - started) / len(jobs)
        made = zip(jobs, drawn.images, tokens, drawn.passes, drawn.gradients)
        return [
            Drawn(
                as_png(image), job.prompt.entities, own, seconds, passes, {"gradients": gradients}, "", self.about()
            )
            for job, image, own, passes, gradients in made
        ]  # fmt: skip


@lru_cache
def _opened(part: BackendPart, sampling: Sampling) -> Ways:
    return Ways(part, sampling)


class WaysOpener(BackendOpener):
    """Opens :class:`Ways`, once a process."""

    def open(self, name: str) -> Ways:
        """Whatever the name: there is one model."""
        return _opened(self.part, self.sampling)


def draw_arms(out: Path, n: int, processes: int, redo: bool = False) -> list[Record]:
    """Of every arm's first ``n`` pictures, drawn into ``out`` where it lacks them, and judged; 0: of all there are."""
    if n:
        arms = {name: arm for name, arm in ARMS.items() if WAYS[arm.way].kind != "rival" or rival_class() is not None}
        jobs = [
            Job(prompt, name, arm.settings, seed, f"{arm.way} {dict(arm.rival)}")
            for count in (2, 3)
            for prompt, seed in of_split("report", count, n)
            for name, arm in arms.items()
        ]
        part = BackendPart("embedded", batch=25, workers=workers_of(processes))
        plan = Plan(arms=tuple(map(ArmPart, arms)), sampling=Sampling(STEPS, CFG), backend=part)
        command = shlex.join(["python", "-m", "lib_decouple", "bench", "--n", str(n), "--out", str(out)])
        carry_out(
            plan, jobs, WaysOpener(part, plan.sampling, out), out, Invocation("# Made by `bench`.\n", command, redo)
        )
    elif not (out / NAME).exists():
        return []
    store = Store(out)
    (judge,), _ = named("drawn", Options())
    judge_all(store, judge, batch=64)
    gradients = {(row["arm"], row["prompt_id"], row["seed"]): row["trace"]["gradients"] for row in store.images()}
    found = pairs.records(store, judge.name)
    return [{**one, "gradients": gradients[one["arm"], one["prompt"], one["seed"]]} for one in found]


def summarise(records: Sequence[Record], costs: Sequence[Record]) -> list[Record]:
    """One row a number of entities and arm: shares, p against exact guidance (paired by seed), and cost."""
    by_way = {(cost["model"], cost["way"]): cost for cost in costs}
    rows = pairs.summarise(records, against="exact")
    for row in rows:
        own = [r for r in records if (r["arm"], r["count"]) == (row["arm"], row["count"])]
        row["gradients"] = statistics.mean(r["gradients"] for r in own)
        for model, steps in (("embedded", STEPS), ("sd15", RUN)):
            way = ARMS[row["arm"]].way
            cost = by_way.get((model, SAME_ON_SD15.get(way, way) if model == "sd15" else way))
            if cost:
                used = [row[key] * steps / STEPS for key in ("passes", "gradients")]
                row[f"{model}_flops"] = run_cost(**cost["flops"], steps=steps, passes=used[0], gradients=used[1])
    return sorted(rows, key=lambda row: (row["count"], list(ARMS).index(row["arm"])))
