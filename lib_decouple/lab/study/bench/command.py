"""``bench``: what guidance costs, and what each cheaper way loses, side by side.

Costs are of one image. A *plain step* is one CFG call of the UNet (two rows); a *guided step* is that
call and what the way adds to it. FLOPs are torch's count (2 for a multiply-add). A run's ratio is
**composed** of single steps, (25 guided + 25 unguided) / (50 plain), unless it is said to be run whole.
Peak memory is the highest resident memory during a guided step above that of the loaded model, each
way in a process of its own. The full Stable Diffusion 1.5 architecture has random weights, 64x64 latents.

What is lost is counted on the embedded model, every arm on the same prompts and noise. A pass that is
not ended early draws the same pictures as exact guidance, so it has no arm. diffusers' Attend-and-Excite
pipeline runs as it is, told only the level of the maps; its call's own defaults are made for 50 steps
(25 guided, refinement at 0, 10, 20), so that at 20 steps every one is guided: ``first half`` scales them down.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ....core.memory import present
from ....hosts.checkpoints import CHECKPOINT
from ...evaluate.files import write_whole
from . import device, overhead, shapes
from .arms import ARMS
from .costs import measure_costs
from .pictures import draw_arms, summarise
from .report import cost_table, loss_table, verdict
from .ways import EXACT, MODELS

PARTS = ("cost", "loss", "shapes", "python", "device")


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("bench", help="what guidance costs and cheaper ways lose", description=__doc__)
    parser.add_argument("--n", type=int, default=300, help="paired seeds for each number of entities (300)")
    parser.add_argument("--parts", default="cost,loss", help=f"by comma, of {', '.join(PARTS)} (cost,loss)")
    parser.add_argument("--models", default="embedded,sd15", help=f"for the cost, by comma, of {', '.join(MODELS)}")
    parser.add_argument("--device", default="cuda", help="of the part of that name: cuda, mps, cpu ... (cuda)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the results (out/bench)")
    parser.add_argument("--jobs", type=int, default=0, help="processes that draw; 0 is one a core")
    parser.add_argument("--redo", action="store_true", help="draw again what other settings had drawn into the folder")
    parser.set_defaults(run=run)


def _listed(name: str, text: str, allowed: Sequence[str]) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if part not in allowed:
            raise ValueError(f"{name}: {part!r} is not one of {', '.join(allowed)}")
    return found


def check_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Remember what the costs in this folder stand for; refuse to mix them with another plan's.

    Raises ValueError when an arm of the same name had other settings.
    """
    arms = dict(plan["arms"])
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, settings in arms.items():
            if name in before["arms"] and before["arms"][name] != json.loads(json.dumps(settings)):
                raise ValueError(f"arms: {name!r} had other settings in {path.parent}; use another --out")
        arms = {**before["arms"], **arms}
    write_whole(path, json.dumps({**plan, "arms": arms}, indent=1))


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet, then write bench.json and bench.md."""
    parts = _listed("parts", arguments.parts, PARTS)
    models = _listed("models", arguments.models, tuple(MODELS))
    if "device" in parts:
        present(arguments.device)
    if arguments.n < 1:
        raise ValueError(f"n: {arguments.n} is not allowed; 1 or more")
    out: Path = arguments.out
    weights = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()[:12]
    arms = {name: {**dataclasses.asdict(arm), "checkpoint": weights} for name, arm in ARMS.items()}
    check_plan(out / "plan.json", {"split": "report", "arms": json.loads(json.dumps(arms))})
    costs = measure_costs(out / "costs.jsonl", models if "cost" in parts else [])
    records = draw_arms(out, arguments.n if "loss" in parts else 0, arguments.jobs, arguments.redo)
    rows = summarise(records, costs)
    on_shapes = (
        [shapes.count(model, path) for model in shapes.FULL for path in shapes.PATHS] if "shapes" in parts else []
    )
    python = overhead.measure_overhead() if "python" in parts else {}
    on_device = list(device.measure(arguments.device)) if "device" in parts else []
    about = (__doc__ or "").split("\n\n", 1)[-1]  # optimised away under -OO
    text = "\n".join(["# What guidance costs, and what cheaper ways lose", "", about])
    text += "\n".join(cost_table(costs, model) for model in MODELS if any(c["model"] == model for c in costs))
    text += f"\n{verdict(costs)}\n\n" if costs else ""
    text += loss_table(rows) if rows else ""
    text += shapes.table(on_shapes) if on_shapes else ""
    text += overhead.table(python) if python else ""
    text += device.table(on_device, arguments.device) if on_device else ""
    machine = {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "diffusers": __import__("diffusers").__version__,
        "checkpoint": weights,
    }
    settings = EXACT.as_dict()
    report = {"machine": machine, "settings": settings, "target": verdict(costs), "costs": costs, "rows": rows}
    report.update(shapes=on_shapes, python=python, device=on_device)
    write_whole(out / "bench.json", json.dumps(report, indent=1))
    write_whole(out / "bench.md", text)
    print(f"{text}\n{out / 'bench.md'}")
    return 0
