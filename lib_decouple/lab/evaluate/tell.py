"""``evaluate tell``: how well "tell" knows which entity is missing, arm by arm: precision and recall against a judge.

Guidance raises the very attention that is read, so what was learned of plain pictures may hold for guided ones worse:
each arm has rows of its own. Read where the setting "tell" reads, at its two noise levels; the last is what is told at
the end of a run. The curve must not be learned from the same pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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
from .statistics import area, share
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
    rows = [row for arm in arms for row in rows_of(store, arm, judge, arguments.threshold, curve)]
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


def rows_of(store: Store, arm: str, judge: str, border: float | None, curve: Curve) -> list[dict[str, Any]]:
    """Of an arm, one row a number of entities and noise level. Raises ValueError as :func:`curve.learned_of` does."""
    images, _ = curve_command.learned_of(store, judge, border, arm)
    counts = sorted({len(image["missing"]) for image in images})
    return [
        {"count": count, "arm": arm, "level": level, **found}
        for count in counts
        for level in LEVELS
        if (found := _told([image for image in images if len(image["missing"]) == count], level, curve))
    ]


def _told(images: Sequence[dict[str, Any]], level: float, curve: Curve) -> dict[str, Any] | None:
    """At each image's first reading at or below a noise level: entities, how many are missing, how many were called so,
    precision and recall with intervals, and the area under the ROC curve. None where nothing is told there."""
    scores, chances, gone = [], [], []
    for image in images:
        place = next((k for k, sigma in enumerate(image["sigmas"]) if sigma <= level), None)
        if place is None:
            continue
        for score, missing in zip(image["scores"][SCORE][place], image["missing"]):
            chance = curve.probability(score, image["sigmas"][place])
            if chance is not None:
                scores.append(score)
                chances.append(chance)
                gone.append(bool(missing))
    if not gone:
        return None
    called = [chance < 0.5 for chance in chances]
    row: dict[str, Any] = {"n": len(gone), "missing": sum(gone), "called": sum(called), "told": float(np.mean(chances))}
    row["area"] = None if all(gone) or not any(gone) else area(~np.array(gone), np.array(scores))
    for name, among, right in (("precision", called, gone), ("recall", gone, called)):
        flags = [own for own, wanted in zip(right, among) if wanted]
        found = share(flags) if flags else None
        row[name] = None if found is None else [found.value, *found.interval]
    return row


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people; 95 % Wilson intervals, which take entities as independent."""

    def told(found: list[float] | None) -> str:
        return "–" if found is None else "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * own for own in found))

    lines = [
        "| entities | arm | sigma | N | missing | told there % | called missing | precision % | recall % | area |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        area_told = "–" if row["area"] is None else f"{row['area']:.2f}"
        lines.append(
            f"| {row['count']} | {row['arm']} | {row['level']:g} | {row['n']} | {row['missing']} | "
            f"{100 * row['told']:.0f} | {row['called']} | {told(row['precision'])} | {told(row['recall'])} | "
            f"{area_told} |"
        )
    return "\n".join(lines) + "\n"
