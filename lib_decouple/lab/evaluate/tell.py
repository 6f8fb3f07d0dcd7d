"""``evaluate tell``: how well "tell" knows which entity is missing, arm by arm: precision and recall against a judge.

Guidance raises the very attention that is read, so what was learned of plain pictures may hold for guided ones worse:
each arm has rows of its own, and beside the area by its own score those by the first arm's, of the same prompt and
seed, and by how much the score has risen over that. An area counts that hard prompts are told from easy ones, which no
choice among seeds is helped by: so there is one within a prompt, too, of whole pictures against others by their weakest
entity. Read where the setting "tell" reads, at its two noise levels; the
last is what is told at the end of a run. The curve must not be learned from the same pictures.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.presence import SCORE, Curve
from ...hosts import curves
from ...hosts.checkpoints import EMBEDDED
from ...hosts.tell import LEVELS
from . import curve as curve_command
from .files import write_whole
from .results import arms_in_order, judge_notes, telling
from .statistics import area, area_interval, area_within, share
from .store import Store

FILE = "tell"
"""Of the results, with .json and .md."""


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("tell", help="how well presence tells what is missing", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a judged run")
    parser.add_argument("--out", type=Path, help=f"folder of {FILE}.json and {FILE}.md (the run's)")
    parser.add_argument("--judge", help="whose word is the truth (drawn, or the first that says what is missing)")
    parser.add_argument("--threshold", type=float, help="below it the judge calls an entity missing (the judge's own)")
    parser.add_argument(
        "--curve", type=Path, help="file of a curve (that of the run's checkpoint which ships, or stands in the run)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the tables."""
    store = Store(arguments.folder)
    judge = arguments.judge or next(iter(telling(judge_notes(store))), None)
    if judge is None:
        raise ValueError("judge: none here says what is missing; `evaluate judge` has one score")
    curve = curve_of(store, arguments.curve)
    read = [row for row in store.images() if (row["trace"] or {}).get("presence")]
    if not read:
        raise ValueError("run: no image has presence scores; runs of the backends embedded and diffusers keep them")
    arms = arms_in_order(read, store.base_arm())
    base = store.base_arm()
    rows = [row for arm in arms for row in rows_of(store, arm, judge, arguments.threshold, curve, base)]
    out = arguments.out or store.folder
    text = as_markdown(rows)
    write_whole(out / f"{FILE}.json", json.dumps({"judge": judge, "rows": rows}, indent=1))
    write_whole(out / f"{FILE}.md", text)
    print(text)
    return 0


def curve_of(store: Store, file: Path | None) -> Curve:
    """A ``file``'s, or what was learned of the checkpoint that has drawn the run. Raises ValueError where nothing was,
    FileNotFoundError."""
    if file is not None:
        return Curve.from_dict(json.loads(file.read_text(encoding="utf-8")))
    drawn_by = curve_command.drawn_by(store)
    for one in (*sorted((store.folder / "curves").glob("*.json")), *sorted(EMBEDDED.glob(f"*{curves.ENDING}"))):
        found = json.loads(one.read_text(encoding="utf-8"))
        if len(drawn_by) == 1 and str(found["checkpoint"]).startswith(next(iter(drawn_by))):
            return Curve.from_dict(found)
    raise ValueError(
        f"curve: nothing was learned of {', '.join(f'[{one}]' for one in sorted(drawn_by))}, which drew the run; "
        "`evaluate calibrate --curve` learns it, or give a file by --curve"
    )


def rows_of(
    store: Store, arm: str, judge: str, border: float | None, curve: Curve, base: str = "plain"
) -> list[dict[str, Any]]:
    """Of an arm, one row a number of entities and noise level; ``base``: the arm that it is held against.

    Raises ValueError as :func:`curve.learned_of` does.
    """
    images, _ = curve_command.learned_of(store, judge, border, arm)
    plain = {}
    if arm != base and any(row["arm"] == base and (row["trace"] or {}).get("presence") for row in store.images()):
        plain = {image["pair"]: image for image in curve_command.learned_of(store, judge, border, base)[0]}
    counts = sorted({len(image["missing"]) for image in images})
    return [
        {"count": count, "arm": arm, "level": level, **found}
        for count in counts
        for level in LEVELS
        if (found := _figures_at([image for image in images if len(image["missing"]) == count], level, curve, plain))
    ]


def _reading(image: dict[str, Any], level: float) -> tuple[float, list[float]] | None:
    """Noise level and scores of an image's first reading at or below a noise level."""
    for sigma, scores in zip(image["sigmas"], image["scores"][SCORE]):
        if sigma <= level:
            return sigma, scores
    return None


def _figures_at(
    images: Sequence[dict[str, Any]], level: float, curve: Curve, plain: Mapping[Any, dict[str, Any]]
) -> dict[str, Any] | None:
    """At each image's first reading at or below a noise level: entities, how many are missing, how many were called so,
    precision and recall with intervals, and areas under the ROC curve: by the score, by that of the ``plain`` picture
    of the same pair, and by the rise over it; within a prompt, of pictures. None where nothing is told there."""
    scores, chances, gone, before, pictures = [], [], [], [], []
    wholes: list[tuple[str, bool, float]] = []
    for number, image in enumerate(images):
        reading = _reading(image, level)
        if reading is None:
            continue
        other = _reading(plain[image["pair"]], level) if image["pair"] in plain else None
        unguided = [math.nan] * len(reading[1]) if other is None else other[1]
        wholes.append((image["pair"][0], not any(image["missing"]), min(reading[1])))
        for score, was, missing in zip(reading[1], unguided, image["missing"]):
            chance = curve.probability(score, reading[0])
            if chance is not None:
                scores.append(score)
                chances.append(chance)
                gone.append(bool(missing))
                before.append(was)
                pictures.append(number)
    if not gone:
        return None
    called = [chance < 0.5 for chance in chances]
    row: dict[str, Any] = {"n": len(gone), "missing": sum(gone), "called": sum(called), "told": float(np.mean(chances))}
    there, own, unmoved, of = ~np.array(gone), np.array(scores), np.array(before), np.array(pictures)
    row["area"] = _area(there, own, of)
    row["area_within"] = _within(wholes)
    if not np.isnan(unmoved).any():
        row["area_plain"], row["area_rise"] = _area(there, unmoved, of), _area(there, own - unmoved, of)
        row["rise"] = float((own - unmoved).mean())
    for name, among, right in (("precision", called, gone), ("recall", gone, called)):
        flags = [own for own, wanted in zip(right, among) if wanted]
        found = share(flags) if flags else None
        row[name] = None if found is None else [found.value, *found.interval]
    return row


def _area(there: np.ndarray, values: np.ndarray, pictures: np.ndarray) -> list[float] | None:
    """With its 95 % interval, pictures resampled; None where all are there or none."""
    if there.all() or not there.any():
        return None
    return [area(there, values), *area_interval(there, values, pictures)]


def _within(pictures: Sequence[tuple[str, bool, float]]) -> list[float] | None:
    """:func:`area_within` of prompts; of each picture its prompt, is it whole, and its lowest score. None where no
    prompt has both kinds."""
    prompts, whole, lowest = zip(*pictures)
    found = area_within(np.array(whole), np.array(lowest), np.array(prompts))
    return None if math.isnan(found[0]) else found


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people; 95 % intervals: of shares Wilson's, which take entities as independent, of areas by
    resampling pictures, within a prompt prompts."""

    def told(found: list[float] | None) -> str:
        return "–" if found is None else "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * own for own in found))

    def areas(found: list[float] | None) -> str:
        if found is None:
            return "–"
        value, low, high = found
        # Where all is sorted right resamples are all alike, which is no certainty.
        return f"{value:.2f} [{low:.2f}, {high:.2f}]" if low < high else f"{value:.2f} [no spread]"

    lines = [
        "| entities | arm | sigma | N | missing | told there % | called missing | precision % | recall % | area "
        "| within a prompt | by plain's score | score risen by | by the rise |",
        "|---" * 14 + "|",
    ]
    for row in rows:
        rise = f"{row['rise']:+.3f}" if "rise" in row else "–"
        lines.append(
            f"| {row['count']} | {row['arm']} | {row['level']:g} | {row['n']} | {row['missing']} | "
            f"{100 * row['told']:.0f} | {row['called']} | {told(row['precision'])} | {told(row['recall'])} | "
            f"{areas(row['area'])} | "
            f"{areas(row['area_within'])} | {areas(row.get('area_plain'))} | {rise} | {areas(row.get('area_rise'))} |"
        )
    return "\n".join(lines) + "\n"
