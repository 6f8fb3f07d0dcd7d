"""``evaluate calibrate``: each judge's own error, on images whose truth is known.

They are drawn scenes of the embedded model, or your own with ``--truth``. A judge's error on flat drawings says little
of its error on photographs.

With ``--curve JUDGE``: what a presence score means for the run's checkpoint, by what that judge said of the run. The
curve is kept by the checkpoint's hash, in a WebUI's data folder with ``--webui``, where "tell" finds it from then on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import stats

from ..model.scenes import joined, place, render
from ..model.sprites import THINGS
from . import curve
from .files import write_whole
from .judge import JUDGES_HELP
from .judges import Missing, Options, named
from .judges.base import DTYPES, Item, Judge, verdicts
from .statistics import Estimate, mean
from .store import Store

FILE = "calibration.json"

Truth = Sequence[tuple[Item, frozenset[str]]]
"""Images, and which of their entities are there."""


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("calibrate", help="each judge's own error", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help=f"folder where {FILE} goes, for the report")
    parser.add_argument("--judges", default="drawn", help=JUDGES_HELP)
    parser.add_argument("--n", type=int, default=400, help="scenes (400)")
    parser.add_argument(
        "--truth",
        type=Path,
        help='JSON lines instead of scenes: {"file", "prompt", "entities": [...], "present": [...]}',
    )
    parser.add_argument("--batch", type=int, default=16, help="images a pass (16)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the models (float32)")
    parser.add_argument("--curve", metavar="JUDGE", help="learn the checkpoint's curve from this judge's scores of RUN")
    parser.add_argument("--checkpoint", type=Path, help="file that drew the run, for its hash; with --curve")
    parser.add_argument("--webui", type=Path, help="a WebUI's data folder, to put the curve there; with --curve")
    parser.add_argument("--arm", default="plain", help="whose images the curve is learned from (plain); with --curve")
    parser.add_argument("--threshold", type=float, help="below it the judge calls an entity missing (the judge's own)")
    parser.set_defaults(run=run)


def scenes(n: int, seed: int = 11) -> list[tuple[Item, frozenset[str]]]:
    """``n`` scenes of two or three named entities, each left out with chance 0.3, and what is truly there."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        names = [str(e) for e in rng.choice(THINGS, size=int(rng.integers(2, 4)), replace=False)]
        present = [e for e in names if rng.random() < 0.7]
        image = Image.fromarray(render(place([(thing, None) for thing in present], rng) if present else [], rng))
        found.append((Item(image, joined(names), tuple(names)), frozenset(present)))
    return found


def labelled(file: Path) -> list[tuple[Item, frozenset[str]]]:
    """The user's images and what is there; paths are relative to ``file``. Raises ValueError with the line's number."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            entities, present = tuple(row["entities"]), frozenset(row["present"])
            with Image.open(file.parent / row["file"]) as image:
                item = Item(image.convert("RGB"), row["prompt"], entities)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"truth: line {number}: {type(error).__name__}: {error}") from None
        if present - set(entities):
            raise ValueError(f"truth: line {number}: {min(present - set(entities))!r} is present but no entity")
        found.append((item, present))
    if not found:
        raise ValueError(f"truth: {file} has no line")
    return found


@dataclass(frozen=True)
class Verdicts:
    """A judge's scores, one for each entity of each image, beside the truth; all ``[entities of all images]``."""

    scores: np.ndarray
    missing: np.ndarray
    """Whether the entity is truly not there."""
    image: np.ndarray
    """Which image."""

    def part(self, keep: np.ndarray) -> Verdicts:
        """Those of ``keep``."""
        return Verdicts(self.scores[keep], self.missing[keep], self.image[keep])

    def rates(self, threshold: float) -> dict[str, Estimate]:
        """Precision and recall of "missing", with intervals over images; NaN where nothing is (called) missing."""
        called = self.scores < threshold
        return {
            "precision": _share(self.missing[called], self.image[called]),
            "recall": _share(called[self.missing], self.image[self.missing]),
        }

    def best(self) -> float:
        """The threshold of the greatest recall of missing plus recall of there; midway between neighbouring scores."""
        values = np.unique(self.scores)
        borders = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], np.inf)]])
        called = self.scores[None] < borders[:, None]
        gain = called[:, self.missing].mean(1) - called[:, ~self.missing].mean(1)
        return float(borders[int(gain.argmax())])

    def auc(self) -> float:
        """How often a missing entity scores below one that is there: 0.5 by chance, 1 at best; NaN for either alone."""
        gone, there = self.scores[self.missing], self.scores[~self.missing]
        if not len(gone) or not len(there):
            return math.nan
        return float(stats.mannwhitneyu(there, gone).statistic / (len(gone) * len(there)))


def _share(values: np.ndarray, images: np.ndarray) -> Estimate:
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    return mean(list(map(float, values)), list(map(str, images)))


def judged(judge: Judge, truth: Truth, batch: int = 16) -> Verdicts:
    """Score the images. Raises ValueError for a judge that scores whole images only."""
    rows: list[tuple[float, bool, int]] = []
    for start in range(0, len(truth), batch):
        own = truth[start : start + batch]
        _, scores = verdicts(judge, [item for item, _ in own])
        for number, ((item, present), found) in enumerate(zip(own, scores), start):
            if lacking := set(item.entities) - set(found):
                raise ValueError(f"{judge.name}: gives no score for {min(lacking)!r}, so it has no precision")
            rows += [(found[entity], entity not in present, number) for entity in item.entities]
    if not rows:
        raise ValueError(f"{judge.name}: the images have no entities to judge")
    score, missing, image = zip(*rows)
    return Verdicts(np.array(score), np.array(missing), np.array(image))


def calibration(judge: Judge, truth: Truth, batch: int = 16) -> dict[str, Any]:
    """What ``calibration.json`` has of a judge.

    ``precision`` and ``recall`` of "missing" are those at ``threshold``: the judge's own, or where it has none the best
    (``chosen``). The best is picked on every other image and measured on the rest, so that it isn't flattered.
    """
    found = judged(judge, truth, batch)
    picking = found.image % 2 == 0
    pick, rest = found.part(picking), found.part(~picking)
    best: dict[str, Any] | None = None
    if len(set(pick.missing)) == 2 and len(rest.missing):
        border = pick.best()
        best = {"threshold": border, **rest.rates(border)}
    at = best if judge.threshold is None else {"threshold": judge.threshold, **found.rates(judge.threshold)}
    if at is None:
        raise ValueError(f"{judge.name}: too few images to find a threshold on")
    return {**at, "chosen": judge.threshold is None, "auc": found.auc(), "best": best}


def as_json(value: Any) -> Any:
    """Estimates as mappings."""
    if isinstance(value, dict):
        return {name: as_json(own) for name, own in value.items()}
    return asdict(value) if isinstance(value, Estimate) else value


def run(arguments: argparse.Namespace) -> int:
    """Judge the images, write calibration.json, keeping what other judges have there; 1 when a judge was left out."""
    for name in ("n", "batch"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}: {getattr(arguments, name)} is not allowed; at least 1")
    if arguments.curve:
        if arguments.checkpoint is None:
            raise ValueError("checkpoint: is needed with --curve: the file that drew the run")
        store = Store(arguments.folder)
        file, held = curve.write(
            store, arguments.curve, arguments.threshold, arguments.arm, arguments.checkpoint, arguments.webui
        )
        print(f"Learned from every other image, held to the rest:\n\n{held}\n{file}")
        return 0
    truth = labelled(arguments.truth) if arguments.truth else scenes(arguments.n)
    judges, lacking = named(arguments.judges, Options(arguments.device, arguments.dtype))
    file = arguments.folder / FILE
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for judge in judges:
        try:
            found = calibration(judge, truth, arguments.batch)
        except (ValueError, Missing) as error:
            lacking.append(str(error) if str(error).startswith(judge.name) else f"{judge.name}: {error}")
            continue
        report[judge.name] = as_json(found) | {"images": str(arguments.truth or "drawn scenes"), "n": len(truth)}
        rates = ", ".join(f"{name} of missing {found[name].percent()} %" for name in ("precision", "recall"))
        chosen = ", the best, as it has none of its own" if found["chosen"] else ""
        print(f"{judge.name}: {rates} at {found['threshold']:.3g}{chosen}; AUC {found['auc']:.3f}")
        if found["best"] and not found["chosen"]:
            best = found["best"]
            rates = ", ".join(f"{name} {best[name].percent()} %" for name in ("precision", "recall"))
            print(f"  best threshold {best['threshold']:.3g}: {rates}")
    write_whole(file, json.dumps(report, indent=1))
    for reason in lacking:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if lacking else 0
