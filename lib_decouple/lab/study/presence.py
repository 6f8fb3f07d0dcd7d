"""``study presence``: how early, and by which score of the maps, one sees which entity will be missing.

Plain runs, or an arm's, looked at at every step, a guided one before its update. Area under the ROC curve: the chance
that an image (or an entity) that turns out whole has the higher score than one that turns out missing; 0.5 says
nothing. Columns are noise levels, since they mean the same for every sampler and number of steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ...core import losses
from ...core.presence import Curve, presence
from ...hosts import curves
from ...hosts.checkpoints import CHECKPOINT
from ...settings import Settings
from ..evaluate.arms import tuned
from ..evaluate.curve import learn, reliability, reliability_as_markdown
from ..evaluate.files import write_whole
from ..evaluate.prompts.splits import SPLITS
from ..evaluate.statistics import area
from ..model.sprites import THINGS
from .sample import Task, draw, draw_all, tasks_of

Score = Callable[[Tensor], Tensor]
"""Non-negative maps ``[entities, h, w]``, at most 1 -> ``[entities]`` in [0, 1]."""


def peak(maps: Tensor) -> Tensor:
    """``max_p A_i(p)`` [F: Attend-and-Excite's measure of neglect, on the raw maps]."""
    return losses.intensity(maps[None], "max")[0]


def mean(maps: Tensor) -> Tensor:
    """``mean_p A_i(p)``, the paper's intensity [P]."""
    return losses.intensity(maps[None], "mean")[0]


def contrast(maps: Tensor) -> Tensor:
    """``1 − mean_p A_i(p) / max_p A_i(p)``: 0 for a flat map, near 1 for a single high place [I]."""
    high = peak(maps)
    return torch.where(high > 0, 1 - mean(maps) / high.clamp(min=losses.EPS), 0.0)


def lead(maps: Tensor) -> Tensor:
    """What ships: :func:`lib_decouple.core.presence.presence`."""
    return presence(maps[None])[0]


def held(maps: Tensor) -> Tensor:
    """``Σ_p Â_i(p) [i is the strongest at p]`` of the normalised maps: the share of its own attention that an entity
    holds where no other's is higher; the terms of the clustering compactness [I]."""
    flat = rearrange(losses.normalised(maps[None])[0], "e h w -> e (h w)")
    return (flat * (flat == flat.amax(0))).sum(1)


def won(maps: Tensor) -> Tensor:
    """Share of the pixels at which the entity's map is the highest, times the number of entities, at most 1 [I]."""
    flat = rearrange(maps.float(), "e h w -> e (h w)")
    return ((flat == flat.amax(0)).float().mean(1) * len(flat)).clamp(max=1)


def blob(maps: Tensor) -> Tensor:
    """Share of what lies above half of the peak that its largest connected part holds, with four neighbours
    [F: TAAG asks for one connected component]."""
    found = []
    for own in maps.float():
        high = own.amax()
        above = own > high / 2
        found.append(_largest_part(own, above) / own[above].sum() if high > 0 else own.new_zeros(()))
    return torch.stack(found)


def _largest_part(own: Tensor, above: Tensor) -> Tensor:
    """Sum of a map over the heaviest connected part of a mask, labels spread until nothing changes."""
    label = torch.where(above, torch.arange(1, above.numel() + 1, device=own.device).view_as(own), 0)
    while True:
        wide = torch.nn.functional.pad(label, (1, 1, 1, 1))
        around = torch.stack(
            [label, wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]]
        ).amax(0)  # fmt: skip
        grown = torch.where(above, around, 0)
        if torch.equal(grown, label):
            return (
                torch.zeros(above.numel() + 1, device=own.device)
                .index_add_(0, label.flatten(), own.flatten())[1:]
                .amax()
            )
        label = grown


SCORES: dict[str, Score] = {
    "peak": peak,
    "mean": mean,
    "contrast": contrast,
    "lead": lead,
    "held": held,
    "won": won,
    "blob": blob,
}
"""Name -> score that was tried."""

READINGS: dict[str, dict[str, Any]] = {
    "raw": {},
    "raw, early layers": {"layers": "early"},
    "raw, last layer": {"layers": "last"},
    "raw, coarser level": {"factor": 2},
    "treated": {"treatment": "attend-excite"},
}
"""How the maps are read: name -> settings; the first are all layers of the embedded model's own level."""

THRESHOLDS = ((13.1, 0.05), (4.7, 0.5), (2.1, 0.8))
"""Noise level, and the treated peak below which Attend-and-Excite's refinement takes an entity for neglected: its steps
0, 10 and 20 of 50 on Stable Diffusion's schedule [F]."""


LOOKED_AT = ("plain", "iou", "com", "kl", "cc", "intensity", "spread", "intensity+com")
"""Arms whose runs are looked at as they are drawn."""


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("presence", help="how early the maps tell what will be missing", description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="images for each number of entities (500)")
    parser.add_argument("--counts", default="2,3", help="numbers of entities, by comma (2,3)")
    parser.add_argument("--split", choices=SPLITS, default="report", help="which prompts and seeds (report)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument(
        "--arm", default="plain",
        help=f"whose pictures, of {', '.join(LOOKED_AT)} (plain); of a guided one nothing is learned",
    )  # fmt: skip
    parser.add_argument(
        "--readings",
        help=f"by semicolon, of {'; '.join(READINGS)} (all; of a guided arm raw, as it is guided by others)",
    )
    parser.add_argument(
        "--curve", type=Path, help="a curve.json of another split, whose probabilities are held to the truth"
    )
    parser.add_argument(
        "--ship", action="store_true", help="put the learned curve beside the embedded model's weights, which it is of"
    )
    parser.add_argument("--out", type=Path, default=Path("out/presence"), help="folder of the results (out/presence)")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 is one a core")
    parser.set_defaults(run=run)


def noise_levels(pipe: Any) -> list[float]:
    """``sigma = sqrt((1 − ᾱ) / ᾱ)`` of the scheduler's timesteps, as they are set."""
    kept = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps.long().cpu()]
    return [round(float(level), 3) for level in ((1 - kept) / kept).sqrt()]


def scored(backend: Any, task: Task) -> list[dict[str, Any]]:
    """Each image's scores ``[score][step][entity]``, the noise levels, and which entities are missing."""
    lost, picture = draw(backend, task)
    found = []
    for job, gone, trace in zip(task.jobs, lost, picture.traces):
        maps = [record.maps for record in trace.steps if record.maps is not None]
        scores = {name: [score(one).tolist() for one in maps] for name, score in SCORES.items()}
        missing = [entity in gone for entity in job.prompt.entities]
        found.append({"seed": job.seed, "sigmas": noise_levels(backend.pipe), "missing": missing, "scores": scores})
    return found


DRAFTED = Settings(enabled=True, gradient="none", look="choose", drafts=2).fixed()
"""What a draft's scores are learned from: unguided, the better of two seeds, so that low scores are there too."""


def drafted(backend: Any, task: Task) -> list[dict[str, Any]]:
    """Of each image the scores ``[entity]`` of the draft that it was drawn from, and which entities are missing."""
    lost, picture = draw(backend, task)
    return [
        {
            "missing": [entity in gone for entity in job.prompt.entities],
            "draft": [choice.scores[choice.drawn][entity] for entity in job.prompt.entities],
        }
        for job, gone, choice in zip(task.jobs, lost, picture.choices)
        if choice and choice.drawn is not None
    ]


def run(arguments: argparse.Namespace) -> int:
    """Draw, score, write presence.json and presence.md."""
    counts = [int(part) for part in arguments.counts.split(",")]
    if arguments.arm not in LOOKED_AT:
        raise ValueError(f"arm: {arguments.arm!r} is not one of {', '.join(LOOKED_AT)}")
    guided = arguments.arm != "plain"
    if guided and (arguments.curve or arguments.ship):
        raise ValueError(f"arm: {arguments.arm!r} is guided; a curve is learned from plain pictures and held to them")
    allowed = {"raw": READINGS["raw"]} if guided else READINGS
    readings = arguments.readings.split(";") if arguments.readings else list(allowed)
    for name in readings:
        if name not in allowed:
            raise ValueError(f"readings: {name!r} is not one of {'; '.join(allowed)}")
    looked = {"watch": True} if guided else {"observe": True}
    tasks = [
        task
        for count in counts
        for name in readings
        for task in tasks_of(
            (count, name),
            arguments.split,
            count,
            arguments.n,
            replace(tuned(arguments.arm, count, arguments.steps), **READINGS[name]),
            keep_maps=True,
            **looked,
        )
    ]
    images: dict[tuple[int, str], list[dict[str, Any]]] = {task.key: [] for task in tasks}
    with tqdm(total=sum(len(task.jobs) for task in tasks), unit="image") as bar:
        for task, found in draw_all(scored, tasks, arguments.jobs, arguments.steps):
            images[task.key] += found
            bar.update(len(found))
    rows = []
    for (count, name), own in images.items():
        start = tuned(arguments.arm, count, arguments.steps).start if guided else None
        rows += areas(count, name, own if start is None else [risen(image, start) for image in own])
    report = {"arm": arguments.arm, "split": arguments.split, "steps": arguments.steps, "n": arguments.n, "rows": rows}
    text = as_markdown(rows, "entity" if guided else "image")
    treated = {count: own for (count, name), own in images.items() if name == "treated"}
    if treated:
        report["thresholds"] = [row for count, own in treated.items() for row in below_thresholds(count, own)]
        text += thresholds_as_markdown(report["thresholds"])
    raw = {count: own for (count, name), own in images.items() if name == "raw"}
    if arguments.curve:
        curve = Curve.from_dict(json.loads(arguments.curve.read_text(encoding="utf-8")))
        report["reliability"] = [row for count, own in raw.items() for row in reliability(curve, count, own)]
        text += "\n" + reliability_as_markdown(report["reliability"])
    elif raw and not guided:
        tasks = [
            task
            for count in counts
            for task in tasks_of((count, "drafts"), arguments.split, count, arguments.n, DRAFTED)
        ]
        drafts = [image for _, found in draw_all(drafted, tasks, arguments.jobs, arguments.steps) for image in found]
        learned = replace(learn([image for own in raw.values() for image in own], drafts), things=THINGS)
        written = json.dumps(curves.as_dict(learned, hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()), indent=1)
        write_whole(arguments.out / "curve.json", written)
        if arguments.ship:
            write_whole(CHECKPOINT.with_name(CHECKPOINT.stem + curves.ENDING), written + "\n")
    write_whole(arguments.out / "presence.json", json.dumps(report, indent=1))
    write_whole(arguments.out / "presence.md", text)
    print(text)
    return 0


def risen(image: dict[str, Any], start: int) -> dict[str, Any]:
    """With each score's rise since step ``start``, the last before guidance has moved anything."""
    own = image["scores"]
    rises = {
        f"{name}, risen": [[after - before for after, before in zip(step, steps[start])] for step in steps]
        for name, steps in own.items()
    }
    return {**image, "scores": {**own, **rises}}


def areas(count: int, reading: str, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Areas by noise level of each score: of the weakest entity for the image, and of every entity for itself."""
    flags = np.array([image["missing"] for image in images])
    rows = []
    for score in images[0]["scores"]:
        values = np.array([image["scores"][score] for image in images])  # [images, steps, entities]
        by_image = [area(np.asarray(~flags.any(1)), step.min(1)) for step in values.transpose(1, 0, 2)]
        by_entity = [area(np.asarray(~flags.ravel()), step.ravel()) for step in values.transpose(1, 0, 2)]
        told = {"count": count, "reading": reading, "score": score, "n": len(images), "sigmas": images[0]["sigmas"]}
        rows.append({**told, "missing": float(flags.any(1).mean()), "image": by_image, "entity": by_entity})
    return rows


def below_thresholds(count: int, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Attend-and-Excite's published :data:`THRESHOLDS` call missing of treated maps, at the nearest noise levels:
    how many entities, how many of these are missing (precision), and of the missing how many are called (recall)."""
    missing = np.array([image["missing"] for image in images])
    rows = []
    for wanted, least in THRESHOLDS:
        sigmas = images[0]["sigmas"]
        k = int(np.abs(np.log(np.array(sigmas) / wanted)).argmin())
        called = np.array([image["scores"]["peak"][k] for image in images]) < least
        row = {"count": count, "sigma": sigmas[k], "least": least, "n": called.size, "called": int(called.sum())}
        row |= {"precision": float(missing[called].mean()) if called.any() else None}
        rows.append({**row, "recall": float(called[missing].mean()) if missing.any() else None})
    return rows


def thresholds_as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [
        "Attend-and-Excite's published thresholds of the treated peak; each entity for itself",
        "",
        "| entities | sigma | missing below | N | called missing | precision | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = ("" if row[name] is None else f"{row[name]:.2f}" for name in ("precision", "recall"))
        cells = [row["count"], f"{row['sigma']:.2g}", row["least"], row["n"], row["called"], *rates]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def as_markdown(rows: Sequence[dict[str, Any]], of: str = "image") -> str:
    """The areas for people: a table a number of entities, of images by their weakest entity or ``of`` each "entity"."""
    lines = []
    for count in sorted({row["count"] for row in rows}):
        own = [row for row in rows if row["count"] == count]
        chosen = range(0, len(own[0]["sigmas"]))
        lines += [
            f"{count} entities, N {own[0]['n']}, {100 * own[0]['missing']:.1f} % with one missing; by {of}; "
            "columns: sigma",
            "",
            "| maps | score | " + " | ".join(f"{own[0]['sigmas'][k]:.2g}" for k in chosen) + " |",
            "|---|---|" + "---|" * len(chosen),
        ]
        lines += [
            f"| {row['reading']} | {row['score']} | " + " | ".join(f"{row[of][k]:.2f}" for k in chosen) + " |"
            for row in own
        ]
        lines.append("")
    return "\n".join(lines)
