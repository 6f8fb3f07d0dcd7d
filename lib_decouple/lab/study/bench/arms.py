"""What each way loses: the same prompts and noise drawn in every way on the embedded model, and judged."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ....hosts.diffusers import generate
from ....settings import Settings
from ...evaluate.files import reopened
from ...evaluate.prompts.splits import CFG, STEPS, Case, cases
from ...model.judge import judged as verdicts
from ...model.scenes import joined
from .. import missing
from ..late import generate_late
from ..sample import chunks, draw_all
from .counting import run_cost
from .rival import draw_rival, rival_class
from .ways import EXACT, RUN, SAME_ON_SD15, WAYS

Record = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to draw the cases; ``way`` names one of :data:`WAYS`."""

    settings: Settings
    way: str = "default layers"
    rival: tuple[tuple[str, Any], ...] = ()
    """What the rival's call is told beyond its own defaults."""


ARMS: dict[str, Arm] = {
    "plain": Arm(Settings(), "plain"),
    "exact": Arm(EXACT),
    **{name: Arm(EXACT, name) for name, way in WAYS.items() if way.kind == "guide" and way.path != "auto"},
    **{
        f"first {n} step{'s' * (n > 1)} only": Arm(dataclasses.replace(EXACT, steps=EXACT.start + n, every=1))
        for n in (5, 3, 1)
    },
    "every 2nd step": Arm(dataclasses.replace(EXACT, every=2)),
    "every 3rd step": Arm(dataclasses.replace(EXACT, every=3)),
    "one step late": Arm(EXACT, "one step late"),
    "diffusers Attend-and-Excite": Arm(Settings(), "diffusers Attend-and-Excite"),
    "diffusers Attend-and-Excite, first half": Arm(
        Settings(),
        "diffusers Attend-and-Excite",
        (("max_iter_to_alter", 10), ("thresholds", {0: 0.05, 4: 0.5, 8: 0.8})),
    ),
}


@dataclass
class Drawn:
    """Images of some cases, with what each one's guidance used."""

    images: list[Any]
    passes: list[float]
    """Passes of the UNet for guidance alone."""
    gradients: list[float]


def draw(pipe: Any, arm: Arm, group: Sequence[Case], steps: int = STEPS) -> Drawn:
    """Draw some cases on the embedded model. Raises RuntimeError when guidance stood aside."""
    way = WAYS[arm.way]
    prompts, names = [joined(case.entities) for case in group], [case.entities for case in group]
    seeds = [case.seed for case in group]
    if way.kind == "rival":
        images, passes, taken = draw_rival(pipe, group, steps, CFG, dict(arm.rival))
        return Drawn(images, [passes] * len(group), [taken] * len(group))
    draws = generate_late if way.kind == "late" else generate
    settings = way.settings(arm.settings)
    picture = draws(pipe, prompts, names, settings, seeds=seeds, steps=steps, guidance_scale=CFG, layers=way.layers)
    if picture.stood_aside:
        raise RuntimeError(f"guidance stood aside {picture.stood_aside}")
    gradients = [
        float(len(t.steps) if way.kind == "late" else sum(one.passes for one in t.steps)) for t in picture.traces
    ]
    return Drawn(picture.images, [float(trace.passes) for trace in picture.traces], gradients)


def judged(pipe: Any, task: tuple[str, tuple[Case, ...]]) -> list[Record]:
    """One record for each of an arm's cases."""
    name, group = task
    drawn = draw(pipe, ARMS[name], group)
    found = []
    told = verdicts(drawn.images, [case.entities for case in group])
    for case, verdict, passes, gradients in zip(group, told, drawn.passes, drawn.gradients):
        found.append(
            {
                "arm": name,
                "count": len(case.entities),
                "entities": list(case.entities),
                "seed": case.seed,
                "missing": list(verdict.missing),
                "extra": len(verdict.extra),
                "passes": passes,
                "gradients": gradients,
            }
        )
    return found


def draw_arms(log: Path, n: int, jobs: int) -> list[Record]:
    """The records of ``log`` that belong to the first ``n`` cases (0: all there are), those added that it lacks."""
    records = reopened(log)
    if not n:
        return records
    done = {(r["arm"], r["count"], r["seed"]) for r in records}
    arms = [name for name, arm in ARMS.items() if WAYS[arm.way].kind != "rival" or rival_class() is not None]
    wanted = {count: cases("report", count, n) for count in (2, 3)}
    tasks = [
        (name, group)
        for count in wanted
        for name in arms
        for group in chunks([c for c in wanted[count] if (name, count, c.seed) not in done], 25)
    ]
    with (
        log.open("a", encoding="utf-8") as file,
        tqdm(total=sum(len(group) for _, group in tasks), unit="image") as bar,
    ):
        for (name, group), found in draw_all(judged, tasks, jobs):
            bar.set_description(f"{name}, {len(group[0].entities)}")
            file.write("".join(json.dumps(record) + "\n" for record in found))
            file.flush()
            records += found
            bar.update(len(found))
    seeds = {case.seed for group in wanted.values() for case in group}
    return [r for r in records if r["seed"] in seeds]


def summarise(records: Sequence[Record], costs: Sequence[Record]) -> list[Record]:
    """One row a number of entities and arm: shares, p against exact guidance (paired by seed), and cost."""
    by_way = {(cost["model"], cost["way"]): cost for cost in costs}
    rows = missing.summarise(records, against="exact")
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
