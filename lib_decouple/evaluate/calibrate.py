"""``evaluate calibrate``: each judge's own error, on drawn scenes of the embedded model whose truth is known."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..embedded.scenes import ENTITIES, caption, place, render
from ..study.files import write_whole
from .judges import Missing, Options, named
from .judges.base import DTYPES, Item, Judge
from .statistics import Estimate, mean

FILE = "calibration.json"


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("calibrate", help="each judge's own error", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help=f"folder where {FILE} goes, for the report")
    parser.add_argument("--judges", default="detector", help="by comma, KIND or KIND:MODEL (detector)")
    parser.add_argument("--n", type=int, default=400, help="scenes (400)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the models (float32)")
    parser.set_defaults(run=run)


def scenes(n: int, seed: int = 11) -> list[tuple[Item, frozenset[str]]]:
    """``n`` scenes of two or three named entities, each left out with chance 0.3, and what is truly there."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        names = [str(e) for e in rng.choice(ENTITIES, size=int(rng.integers(2, 4)), replace=False)]
        present = [e for e in names if rng.random() < 0.7]
        image = Image.fromarray(render(place(present, rng)))
        found.append((Item(image, caption(names), tuple(names)), frozenset(present)))
    return found


def calibration(judge: Judge, truth: Sequence[tuple[Item, frozenset[str]]], batch: int = 16) -> dict[str, Estimate]:
    """Precision and recall of "missing", with intervals over scenes; NaN where nothing is (called) missing."""
    if judge.threshold is None:
        raise ValueError(f"{judge.name}: has no border between there and missing, so no precision")
    precise: list[tuple[float, str]] = []
    recalled: list[tuple[float, str]] = []
    for start in range(0, len(truth), batch):
        own = truth[start : start + batch]
        for place_, ((item, present), scores) in enumerate(zip(own, judge.score([i for i, _ in own]))):
            for entity in item.entities:
                called, gone = scores[entity] < judge.threshold, entity not in present
                scene = str(start + place_)
                if called:
                    precise.append((float(gone), scene))
                if gone:
                    recalled.append((float(called), scene))
    none = Estimate(math.nan, math.nan, math.nan, 0, 0)
    return {
        name: mean([v for v, _ in pairs], [s for _, s in pairs]) if pairs else none
        for name, pairs in (("precision", precise), ("recall", recalled))
    }


def run(arguments: argparse.Namespace) -> int:
    """Judge the scenes, write calibration.json."""
    if arguments.n < 1:
        raise ValueError(f"n: {arguments.n} is not allowed; at least 1")
    judges, lacking = named(arguments.judges, Options(arguments.device, arguments.dtype))
    truth, report = scenes(arguments.n), {}
    for judge in judges:
        try:
            found = calibration(judge, truth)
        except (ValueError, Missing) as error:
            lacking.append(str(error))
            continue
        report[judge.name] = {name: asdict(estimate) for name, estimate in found.items()}
        print(f"{judge.name}: " + ", ".join(f"{n} of missing {e.percent()} %" for n, e in found.items()))
    write_whole(arguments.folder / FILE, json.dumps(report, indent=1))
    for reason in lacking:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if lacking else 0
