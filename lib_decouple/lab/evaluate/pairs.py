"""``evaluate pairs``: a judged run picture by picture, one row an arm.

Shares have Wilson intervals and exact McNemar p against another arm, pictures paired by prompt and seed and taken as
independent, as those of a split nearly are: each has a seed of its own. What was brought back has an interval over
prompts, as all has that ``evaluate report`` says, which resamples whole ones.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import write_whole
from .flops import STEPS, times_plain, was_accepted
from .judges.base import COLOUR, EXTRA
from .results import judge_notes, telling
from .statistics import brought_back, mcnemar, share
from .store import Store

Record = dict[str, Any]
"""Of an image: ``arm``, ``set``, ``count``, ``prompt``, ``seed``, names that are ``missing``, ``passes``, what it cost
and, where it was insisted on, whether a draft was ``accepted`` (:mod:`flops`); where the
judge counts them ``extra``, and ``wrong``: entity -> whether it shows another colour than asked for."""

BY = ("count", "set")


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("pairs", help="one row an arm, picture by picture", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--out", type=Path, help="folder of results.json, .csv, .md and .png (the run's)")
    parser.add_argument("--by", choices=BY, default="count", help="rows by number of entities, or by set of prompts")
    parser.add_argument("--judge", help="whose word (drawn, or the first that says what is missing)")
    parser.add_argument("--against", help="the arm that others are compared with (the plan's first, else plain)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the tables."""
    store = Store(arguments.folder)
    rows = write(store, arguments.out or store.folder, arguments.judge, arguments.against, arguments.by)
    print(as_markdown(rows))
    return 0


def records(store: Store, judge: str | None = None) -> list[Record]:
    """Of the run's images that the judge has scored. Raises ValueError for one that has no border of "missing"."""
    notes = judge_notes(store)
    able = telling(notes)
    judge = judge or next(iter(able), None)
    if judge not in able:
        told = ", ".join(able) or "none: no judge here says what is missing; `evaluate judge` has one score"
        raise ValueError(f"judge: {judge!r} is not one of {told}")
    border, scores = notes[judge].threshold or 0.0, store.scores(judge)
    found = []
    for row in store.images():
        own = scores.get(row["id"])
        if own is None:
            continue
        record = {"arm": row["arm"], "set": row["prompt_set"], "count": row["count"], "prompt": row["prompt_id"]}
        record |= {"seed": row["seed"], "passes": row["passes"], "settings": row["settings"]}
        record |= {f"flops_{steps}": times_plain(row, steps) for steps in STEPS}
        record["accepted"] = was_accepted(row)
        record["missing"] = [name for name in row["entities"] if own.get(name, border) < border]
        if EXTRA in own:
            record["extra"] = round(own[EXTRA])
        record["wrong"] = {key[len(COLOUR) :]: not value for key, value in own.items() if key.startswith(COLOUR)}
        found.append(record)
    return found


FIGURES: dict[str, Callable[[Record], bool]] = {
    "missing": lambda r: bool(r["missing"]),
    "extra": lambda r: r["extra"] > 0,
    "right": lambda r: not (r["missing"] or r["extra"] > 0 or any(r.get("wrong", {}).values())),
}
"""Share of images with a named entity missing, with something extra, and exactly right."""
NEEDS = {"missing": "missing", "extra": "extra", "right": "extra"}
"""What a record must have for a figure."""
COLOURS = "colour"
"""Share of the things that are there, and for which a colour was asked, that show another. A share of images would take
bringing back for harm: what is missing shows no wrong colour."""
SHOWN = ("missing", "extra", COLOURS, "right")
COSTS = {f"flops_{steps}": f"FLOPs x plain of {steps} steps" for steps in STEPS}


def summarise(records: Sequence[Record], against: str = "plain", by: str = "count") -> list[Record]:
    """One row an arm and number of entities (or set): shares with intervals, and p against an arm, pair by pair."""

    def group(record: Record) -> tuple[str, int]:
        return str(record["set"]) if by == "set" else "", record["count"]

    rows = []
    for name, count in dict.fromkeys(sorted(group(r) for r in records)):
        inside = [r for r in records if group(r) == (name, count)]
        pairs: dict[str, dict[Any, Record]] = {arm: {} for arm in dict.fromkeys(r["arm"] for r in records)}
        for record in inside:
            pairs[record["arm"]][record.get("prompt"), record["seed"]] = record
        base = pairs.get(against, {})
        for arm, own in pairs.items():
            if own:
                head: Record = {"set": name} if by == "set" else {}
                rows.append({**head, "count": count, "arm": arm, **_row(own, base, arm != against)})
    return rows


def _row(own: Mapping[Any, Record], base: Mapping[Any, Record], other: bool) -> Record:
    """Of one arm; ``base``: the pairs of the arm that it is compared with where it is an ``other``."""
    row: Record = {"n": len(own)}
    both = [pair for pair in own if pair in base]
    for name, flag in FIGURES.items():
        if all(NEEDS[name] in record for record in own.values()):
            after, before = ({pair: flag(some[pair]) for pair in some} for some in (own, base))
            row |= _figure(name, after, before if other else {})
    wrong, wrong_before = (
        {(pair, thing): flag for pair, record in some.items() for thing, flag in record.get("wrong", {}).items()}
        for some in (own, base)
    )
    if wrong:
        row |= {"things": len(wrong), **_figure(COLOURS, wrong, wrong_before if other else {})}
    missing = sum(len(record["missing"]) for record in own.values())
    row["entities_missing"] = missing / sum(record["count"] for record in own.values())
    if any(base[pair]["missing"] for pair in both) and len(both) == len(own):
        lacking, left = ([len(some[pair]["missing"]) for pair in both] for some in (base, own))
        found = brought_back(lacking, left, [str(own[pair].get("prompt")) for pair in both])
        row["removed"] = found.value
        if not math.isnan(found.low):
            row |= {"removed_low": found.low, "removed_high": found.high}
    passes = [record["passes"] for record in own.values() if record["passes"] is not None]
    if passes:
        row["passes"] = sum(passes) / len(passes)
    for name in COSTS:
        times = [record[name] for record in own.values() if record.get(name) is not None]
        if len(times) == len(own):
            row[name] = sum(times) / len(times)
    accepted = [record["accepted"] for record in own.values() if record.get("accepted") is not None]
    if accepted:
        row["not_accepted"] = accepted.count(False)
    return row


def _figure(name: str, after: Mapping[Any, bool], before: Mapping[Any, bool]) -> Record:
    """A share with its interval, and p where some are in both."""
    found = share(list(after.values()))
    low, high = found.interval
    row = {name: found.value, f"{name}_low": low, f"{name}_high": high}
    both = [key for key in after if key in before]
    if both:
        row[f"{name}_p"] = mcnemar([before[key] for key in both], [after[key] for key in both])
    return row


def as_csv(rows: Sequence[Record]) -> str:
    """The rows, all their figures."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


WORDS = {"missing": "missing", "extra": "extra", COLOURS: "wrong colour of things there", "right": "exactly right"}


def as_markdown(rows: Sequence[Record]) -> str:
    """The rows for people: per cent with 95 % Wilson intervals (what was brought back: bootstrap over prompts), exact
    McNemar p against the arm compared with; FLOPs as :mod:`flops` reckons them."""
    shown = [name for name in SHOWN if any(name in row for row in rows)]
    head = ["set", "arm"] if any("set" in row for row in rows) else ["entities", "arm"]
    head.append("N")
    for name in shown:
        head += [f"{WORDS[name]} %", "p", *(["entities brought back %"] if name == "missing" else [])]
    insisted = any("not_accepted" in row for row in rows)
    counted = [name for name in COSTS if any(name in row for row in rows)]
    head += ["passes", *(COSTS[name] for name in counted), *(["no draft accepted"] if insisted else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [str(row.get("set", row["count"])), row["arm"], str(row["n"])]
        for name in shown:
            cells += [_cell(row, name), f"{row[f'{name}_p']:.1g}" if f"{name}_p" in row else ""]
            if name == "missing":
                cells.append(_removed(row))
        cells.append(f"{row['passes']:.1f}" if "passes" in row else "")
        cells += [f"{row[name]:.2f}" if name in row else "" for name in counted]
        cells += [str(row.get("not_accepted", ""))] if insisted else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Record, name: str) -> str:
    if name not in row:
        return ""
    return f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"


def _removed(row: Record) -> str:
    if "removed" not in row or "missing_p" not in row:
        return ""
    ends = f" [{100 * row['removed_low']:.0f}, {100 * row['removed_high']:.0f}]" if "removed_low" in row else ""
    return f"{100 * row['removed']:.0f}{ends}"


def plot(path: Path, rows: Sequence[Record]) -> None:
    """Bars with intervals, a line of panels for each number of entities or set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((row.get("set", ""), row["count"]) for row in rows))
    shown = [name for name in SHOWN if any(name in row for row in rows)]
    size = (1 + 4 * len(shown), 0.6 + 0.34 * len(rows) + 0.5 * len(groups))
    figure, axes = plt.subplots(
        len(groups), len(shown), figsize=size, squeeze=False, constrained_layout=True, sharey="row"
    )
    for line, (name, count) in enumerate(groups):
        own = [row for row in rows if (row.get("set", ""), row["count"]) == (name, count)][::-1]
        for axis, what in zip(axes[line], shown):
            some = [row for row in own if what in row]
            values = [100 * row[what] for row in some]
            low = [100 * (row[what] - row[f"{what}_low"]) for row in some]
            high = [100 * (row[f"{what}_high"] - row[what]) for row in some]
            colours = ["#1b6ca8" if f"{what}_p" in row else "#888888" for row in some]
            axis.barh([row["arm"] for row in some], values, xerr=[low, high], color=colours, error_kw={"lw": 0.8})
            axis.set_title(f"{name or f'{count} entities'}: {WORDS[what]} (%)", fontsize=10)
            axis.set_xlim(0, 100)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(
    store: Store,
    out: Path,
    judge: str | None = None,
    against: str | None = None,
    by: str = "count",
    about: Mapping[str, Any] | None = None,
) -> list[Record]:
    """results.json (with ``about`` at its head), results.csv, results.md and results.png; gives their rows.

    Raises ValueError for a judge that says nothing of what is missing, and an arm that was not drawn.
    """
    found = records(store, judge)
    against = against or store.base_arm()
    if against not in (arms := list(dict.fromkeys(record["arm"] for record in found))):
        raise ValueError(f"against: {against!r} is not one of {', '.join(arms) or 'none, since nothing is judged'}")
    rows = summarise(found, against, by)
    settings = {f"{record['count']} {record['arm']}": record["settings"] for record in found}
    report = {**(about or {}), "against": against, "settings": settings, "rows": rows}
    write_whole(out / "results.json", json.dumps(report, indent=1))
    write_whole(out / "results.csv", as_csv(rows))
    write_whole(out / "results.md", as_markdown(rows))
    plot(out / "results.png", rows)
    return rows
