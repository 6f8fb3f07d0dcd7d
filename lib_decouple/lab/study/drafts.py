"""``study drafts``: which drafts, by which score of their maps, tell which of one prompt's guided pictures is whole?

Each prompt's pictures are drawn guided from several seeds, and each seed is drafted with and without guidance. Within a
prompt is what choosing needs: a score that is high for easy prompts tells nothing of their seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...hosts.diffusers import Drawing
from ...settings import Settings
from ..evaluate.arms import tuned
from ..evaluate.files import write_whole
from ..evaluate.plan import Job
from ..evaluate.prompts import Prompt, every_order
from ..evaluate.prompts.splits import CFG, SPLITS, STEPS
from ..evaluate.statistics import area_within
from . import presence
from .presence import SCORES
from .sample import BATCH, Task, draw, draw_all

PARTS = ("all", "early")
"""Layers of the level whose maps are read."""
FIRST_SEED = 3_000_000
LOOKED_AT = [arm for arm in presence.LOOKED_AT if arm != "plain"]


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("drafts", help="which drafts tell the best of a prompt's seeds", description=__doc__)
    parser.add_argument("--prompts", type=int, default=60, help="how many (60)")
    parser.add_argument("--seeds", type=int, default=4, help="of each prompt (4)")
    parser.add_argument("--count", type=int, default=3, help="number of entities (3)")
    parser.add_argument("--split", choices=SPLITS, default="tune", help="which prompts (tune)")
    parser.add_argument("--arm", choices=LOOKED_AT, default="com", help="by which the pictures are guided (com)")
    parser.add_argument("--out", type=Path, default=Path("out/drafts"), help="folder of the results (out/drafts)")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 is one a core")
    parser.set_defaults(run=run)


def jobs_of(split: str, count: int, prompts: int, seeds: int, settings: Settings) -> list[Job]:
    """So many ``seeds`` of each of so many ``prompts``, always the same ones. Raises ValueError for too many."""
    orders = every_order(split, count)
    if prompts > len(orders):
        raise ValueError(f"prompts: {prompts} is not allowed; {split!r} has {len(orders)} of {count} entities")
    random.Random(5).shuffle(orders)
    chosen = [Prompt(text, entities, f"{split}-{count}") for text, entities in orders[:prompts]]
    return [
        Job(prompt, "", settings, FIRST_SEED + 100 * number + seed)
        for number, prompt in enumerate(chosen)
        for seed in range(seeds)
    ]


def drafted(backend: Any, task: Task) -> list[dict[str, Any]]:
    """Of each picture its prompt, how many entities are missing, and each draft's weakest entity's scores."""
    lost, _ = draw(backend, task)
    found: list[dict[str, Any]] = [
        {"prompt": job.prompt.text, "missing": len(own), "scores": {}} for job, own in zip(task.jobs, lost)
    ]  # fmt: skip
    for guided, part in itertools.product((False, True), PARTS):
        kept: list[dict[str, float]] = []

        def score(maps: Tensor, kept: list[dict[str, float]] = kept) -> Tensor:
            kept.append({name: float(own(maps[0]).min()) for name, own in SCORES.items()})
            return torch.zeros(maps.shape[:2])

        drawing = Drawing(
            backend.pipe, [job.prompt.text for job in task.jobs], [job.prompt.entities for job in task.jobs],
            task.jobs[0].settings, seeds=[job.seed for job in task.jobs], steps=STEPS, guidance_scale=CFG,
            unguided_drafts=not guided,
        )  # fmt: skip
        drawing.drafts(score, part)
        for image, own in zip(found, kept):
            for name, value in own.items():
                image["scores"]["guided" if guided else "unguided", part, name] = value
    return found


def run(arguments: argparse.Namespace) -> int:
    """Draw, draft, write drafts.json and drafts.md."""
    settings = replace(tuned(arguments.arm, arguments.count), look="tell")
    jobs = jobs_of(arguments.split, arguments.count, arguments.prompts, arguments.seeds, settings)
    tasks = [Task("drafts", tuple(jobs[start : start + BATCH])) for start in range(0, len(jobs), BATCH)]
    images: list[dict[str, Any]] = []
    with tqdm(total=len(jobs), unit="image") as bar:
        for task, found in draw_all(drafted, tasks, arguments.jobs):
            images += found
            bar.update(len(task.jobs))
    rows = [row_of(key, images) for key in images[0]["scores"]]
    about = {"arm": arguments.arm, "split": arguments.split, "count": arguments.count, "seeds": arguments.seeds}
    write_whole(arguments.out / "drafts.json", json.dumps({**about, "rows": rows}, indent=1))
    text = as_markdown(rows, images, arguments.arm)
    write_whole(arguments.out / "drafts.md", text)
    print(text)
    return 0


def by_prompt(images: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The pictures of each prompt, which stand together."""
    for _, own in itertools.groupby(images, key=lambda image: image["prompt"]):
        yield list(own)


def row_of(key: tuple[str, str, str], images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The area within a prompt by one score, over all pairs of a whole and an incomplete picture of one prompt, and
    what is missing where of each prompt the seed with the highest score is drawn."""
    groups = list(by_prompt(images))
    whole = np.array([not image["missing"] for image in images])
    prompts = np.array([image["prompt"] for image in images])
    within, *_ = area_within(whole, np.array([image["scores"][key] for image in images]), prompts)
    pairs = sum(not one["missing"] and other["missing"] > 0 for own in groups for one in own for other in own)
    chosen = [max(own, key=lambda image: image["scores"][key]) for own in groups]
    pictures, entities = sum(image["missing"] > 0 for image in chosen), sum(image["missing"] for image in chosen)
    row: dict[str, Any] = dict(zip(("drafts", "layers", "score"), key))
    return {**row, "within": within if pairs else None, "pairs": pairs, "pictures": pictures, "entities": entities}


def as_markdown(rows: Sequence[dict[str, Any]], images: Sequence[dict[str, Any]], arm: str) -> str:
    """The rows for people."""
    groups = list(by_prompt(images))
    per_seed = len(images) / len(groups)
    pictures = sum(image["missing"] > 0 for image in images) / per_seed
    entities = sum(image["missing"] for image in images) / per_seed
    best = sum(min(image["missing"] for image in own) > 0 for own in groups)
    lines = [
        f"{len(groups)} prompts, {per_seed:g} seeds each, guided by {arm}: without choosing {pictures:g} pictures lack "
        f"{entities:g} things (mean of the seeds); whatever is chosen {best} lack one",
        "",
        "| drafts | layers | score | area within a prompt | pictures that lack a thing | things missing |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        within = "" if row["within"] is None else f"{row['within']:.2f}"
        told = [row["drafts"], row["layers"], row["score"], within, row["pictures"], row["entities"]]
        lines.append(f"| {' | '.join(map(str, told))} |")
    return "\n".join(lines) + "\n"
