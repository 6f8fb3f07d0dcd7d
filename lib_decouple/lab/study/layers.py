"""``study layers``: which cross-attention layers of the embedded model say where an entity is.

For each layer and step of plain runs: the chance that a place inside a drawn entity has more of its
token's attention than a place outside (area under the ROC curve; 0.5 says nothing).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu
from tqdm import tqdm

from ...core.maps import CrossAttentionLayer
from ...hosts.diffusers import cross_attention_layers
from ..evaluate.files import write_whole
from ..evaluate.prompts.splits import SPLITS, STEPS
from ..model.judge import FoundThing, look
from ..model.scenes import SCENE, SIZES
from .sample import embedded, tasks_of

RADIUS = sum(SIZES[2]) / 4
"""Half of the mean side of one of two things, pixels."""

SHOWN = (1, 3, 5, 7, 9, 12, 16, 20)


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("layers", help="which layers localise", description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="images of two entities (100)")
    parser.add_argument("--split", choices=SPLITS, default="tune", help="which prompts and seeds (tune)")
    parser.add_argument("--out", type=Path, default=Path("out/layers"), help="folder of the results (out/layers)")
    parser.set_defaults(run=run)


def inside(thing: FoundThing, rows: int, columns: int) -> np.ndarray:
    """Which cells of a map, ``[rows, columns]``, have their centre on the thing."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.hypot((y + 0.5) * SCENE / rows - thing.y, (x + 0.5) * SCENE / columns - thing.x) < RADIUS


def run(arguments: argparse.Namespace) -> int:
    """Draw once for each layer, write layers.json and layers.md."""
    backend: Any = embedded().open("")
    rows = []
    for layer in tqdm(cross_attention_layers(backend.pipe.unet), unit="layer"):
        areas: dict[int, list[float]] = {step: [] for step in range(STEPS)}

        def only(_: list[CrossAttentionLayer], chosen: CrossAttentionLayer = layer) -> list[CrossAttentionLayer]:
            return [chosen]

        for task in tasks_of(None, arguments.split, 2, arguments.n, observe=True, keep_maps=True, layers=only):
            picture = backend.picture(task.jobs, **task.more)
            seen = look(np.stack([np.asarray(image) for image in picture.images]))
            for job, things, trace in zip(task.jobs, seen, picture.traces):
                found = {thing.thing: thing for thing in things}
                for record in trace.steps:
                    assert record.maps is not None
                    for entity, own in zip(job.prompt.entities, record.maps.numpy()):
                        if entity in found and (place := inside(found[entity], *own.shape)).any():
                            above = mannwhitneyu(own[place], own[~place]).statistic
                            areas[record.step].append(float(above / (place.sum() * (~place).sum())))
        rows.append({"layer": layer.name, "auc": [float(np.mean(areas[step])) for step in range(STEPS)]})
    write_whole(arguments.out / "layers.json", json.dumps({"n": arguments.n, "rows": rows}, indent=1))
    write_whole(arguments.out / "layers.md", as_markdown(rows))
    print(as_markdown(rows))
    return 0


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Area under the ROC curve at some steps (from 1)."""
    lines = ["| layer | " + " | ".join(f"step {s}" for s in SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for row in rows:
        name = row["layer"].replace(".transformer_blocks.0.attn2", "")
        lines.append(f"| {name} | " + " | ".join(f"{row['auc'][s - 1]:.2f}" for s in SHOWN) + " |")
    return "\n".join(lines) + "\n"
