"""``study missing``: how often an entity is missing, plain and under each loss, on the embedded model.

Every arm draws the same prompts from the same noise, so arms are compared pair by pair.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...settings import Settings
from ..evaluate.arms import ARMS, NAMES
from ..evaluate.files import reopened, write_whole
from ..evaluate.prompts.splits import SPLITS, cases
from ..evaluate.statistics import mcnemar, share
from ..evaluate.trials import TRIALS
from .sample import Task, chunks, draw, draw_all

Record = dict[str, Any]


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("missing", help="missing rates, paired over arms", description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="paired seeds for each number of entities (500)")
    parser.add_argument("--counts", default="2,3", help="numbers of entities, by comma (2,3)")
    parser.add_argument("--arms", default=",".join(NAMES), help=f"by comma, of {', '.join(NAMES)}")
    parser.add_argument("--split", choices=SPLITS, default="report", help="which prompts and seeds (report)")
    parser.add_argument(
        "--first-seed", type=int, metavar="N", help="the same prompts from seeds N, N + 1, ... instead of the split's"
    )
    parser.add_argument("--out", type=Path, default=Path("out/missing"), help="folder of the results (out/missing)")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 is one a core")
    parser.add_argument("--batch", type=int, default=25, help="images a pass (25)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="ARM:FIELD=VALUE", help="one more arm, JSON value"
    )
    parser.set_defaults(run=run)


def arms_from(names: str, extra: Sequence[str], count: int) -> dict[str, Settings]:
    """The arms by name, and those that ``--set`` builds from an existing one. Raises ValueError by name."""
    if count not in ARMS:
        raise ValueError(f"counts: {count} is not one of {', '.join(map(str, ARMS))}")
    own = ARMS[count]
    chosen: dict[str, Settings] = {}
    for name in (part.strip() for part in names.split(",")):
        if name not in own:
            raise ValueError(f"arms: {name!r} is not one of {', '.join(own)}")
        chosen[name] = own[name]
    for text in extra:
        arm, _, changes = text.partition(":")
        if arm not in own or not changes:
            raise ValueError(f"set: {text!r} is not ARM:FIELD=VALUE[;FIELD=VALUE] with an arm of {', '.join(own)}")
        values = {}
        for change in changes.split(";"):
            field, _, value = change.partition("=")
            try:
                values[field] = json.loads(value)
            except ValueError:
                raise ValueError(f"set: {change!r} is not FIELD=VALUE with a JSON value") from None
        chosen[text] = Settings.from_dict({**own[arm].as_dict(), **values})
    return chosen


def judged(pipe: Any, task: Task) -> list[Record]:
    """One record for each of a task's images."""
    verdicts, picture = draw(pipe, task)
    arm, count = task.key
    return [
        {
            "arm": arm,
            "count": count,
            "entities": list(case.entities),
            "seed": case.seed,
            "missing": list(verdict.missing),
            "extra": len(verdict.extra),
            "passes": trace.passes,
        }
        for case, verdict, trace in zip(task.cases, verdicts, picture.traces)
    ]


def run(arguments: argparse.Namespace) -> int:
    """Draw what is not drawn yet, then write results.json, results.csv, results.md and results.png."""
    counts = [int(part) for part in arguments.counts.split(",")]
    arms = {count: arms_from(arguments.arms, arguments.set, count) for count in counts}
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    plan = {
        "split": arguments.split,
        "first_seed": arguments.first_seed,
        "arms": {f"{count} {name}": s.as_dict() for count, own in arms.items() for name, s in own.items()},
    }
    check_plan(out / "plan.json", plan)
    log = out / "images.jsonl"
    records = reopened(log)
    done = {(r["arm"], r["count"], r["seed"]) for r in records}
    tasks = []
    for count in counts:
        wanted = cases(arguments.split, count, arguments.n, arguments.first_seed)
        for name, settings in arms[count].items():
            left = [case for case in wanted if (name, count, case.seed) not in done]
            trial = name.partition(":")[0] if name.partition(":")[0] in TRIALS else ""
            tasks += [Task((name, count), group, settings, trial=trial) for group in chunks(left, arguments.batch)]
    started = time.time()
    with log.open("a", encoding="utf-8") as file, tqdm(total=sum(len(t.cases) for t in tasks), unit="image") as bar:
        for task, found in draw_all(judged, tasks, arguments.jobs):
            bar.set_description(f"{task.key[0]} {task.key[1]}")
            file.write("".join(json.dumps(record) + "\n" for record in found))
            file.flush()
            records += found
            bar.update(len(found))
    wanted_seeds = {
        (count, case.seed)
        for count in counts
        for case in cases(arguments.split, count, arguments.n, arguments.first_seed)
    }
    table = summarise([r for r in records if (r["count"], r["seed"]) in wanted_seeds and r["arm"] in arms[r["count"]]])
    report = {
        "split": arguments.split,
        "first_seed": arguments.first_seed,
        "n": arguments.n,
        "settings": plan["arms"],
        "rows": table,
    }
    write_whole(out / "results.json", json.dumps(report, indent=1))
    write_whole(out / "results.csv", as_csv(table))
    write_whole(out / "results.md", as_markdown(table))
    plot(out / "results.png", table)
    print(as_markdown(table))
    print(f"{out / 'results.json'} ({time.time() - started:.0f} s)")
    return 0


def check_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Remember what the records in this folder stand for; refuse to mix them with another plan.

    Raises ValueError when an arm of the same name had other settings, or the split or the first seed differs.
    """
    arms = dict(plan["arms"])
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["split"] != plan["split"]:
            raise ValueError(
                f"split: {path.parent} holds {before['split']!r}, not {plan['split']!r}; use another --out"
            )
        held, wanted = before.get("first_seed"), plan.get("first_seed")
        if held != wanted:
            raise ValueError(f"first-seed: {path.parent} holds {held}, not {wanted}; use another --out")
        for name, settings in arms.items():
            if name in before["arms"] and before["arms"][name] != json.loads(json.dumps(settings)):
                raise ValueError(f"arms: {name!r} had other settings in {path.parent}; use another --out")
        arms = {**before["arms"], **arms}
    write_whole(path, json.dumps({**plan, "arms": arms}, indent=1))


def summarise(records: Sequence[Record], against: str = "plain") -> list[Record]:
    """One row an arm and number of entities: shares with intervals, and p against an arm, paired by seed."""
    rows = []
    for count in sorted({r["count"] for r in records}):
        arms = list(dict.fromkeys(r["arm"] for r in records))
        by_seed = {arm: {r["seed"]: r for r in records if r["arm"] == arm and r["count"] == count} for arm in arms}
        base = by_seed.get(against, {})
        for arm, own in by_seed.items():
            if not own:
                continue
            seeds = sorted(own)
            row: Record = {"count": count, "arm": arm, "n": len(seeds)}
            for name, flag in FIGURES.items():
                found = share([flag(own[s]) for s in seeds])
                row[name] = found.value
                row[f"{name}_low"], row[f"{name}_high"] = found.interval
                both = [s for s in seeds if s in base]
                if arm != against and both:
                    row[f"{name}_p"] = mcnemar([flag(base[s]) for s in both], [flag(own[s]) for s in both])
            row["entities_missing"] = sum(len(own[s]["missing"]) for s in seeds) / (count * len(seeds))
            before = sum(len(base[s]["missing"]) for s in seeds if s in base)
            if before and all(s in base for s in seeds):
                row["removed"] = 1 - sum(len(own[s]["missing"]) for s in seeds) / before
            row["passes"] = sum(own[s]["passes"] for s in seeds) / len(seeds)
            rows.append(row)
    return rows


FIGURES = {
    "missing": lambda r: bool(r["missing"]),
    "extra": lambda r: r["extra"] > 0,
    "right": lambda r: not r["missing"] and r["extra"] <= 0,
}
"""Share of images with a named entity missing, with something extra, and exactly right."""


def as_csv(rows: Sequence[Record]) -> str:
    """The rows, all their figures."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(row: Record, name: str) -> str:
    return f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"


def as_markdown(rows: Sequence[Record]) -> str:
    """The rows for people: per cent with 95 % Wilson intervals, exact McNemar p against plain."""
    lines = [
        "| entities | arm | N | missing % | p | entities brought back % | extra % | p | exactly right % | p | passes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        p = {name: f"{row[f'{name}_p']:.1g}" if f"{name}_p" in row else "" for name in FIGURES}
        back = f"{100 * row['removed']:.0f}" if "removed" in row and row["arm"] != "plain" else ""
        lines.append(
            f"| {row['count']} | {row['arm']} | {row['n']} | {_cell(row, 'missing')} | {p['missing']} | {back} | "
            f"{_cell(row, 'extra')} | {p['extra']} | {_cell(row, 'right')} | {p['right']} | {row['passes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: Sequence[Record]) -> None:
    """Bars with intervals: missing, extra, right, for each number of entities."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["count"] for row in rows})
    figure, axes = plt.subplots(
        len(counts), len(FIGURES), figsize=(13, 0.6 + 0.34 * len(rows) + 0.5 * len(counts)), squeeze=False,
        constrained_layout=True, sharey="row",
    )  # fmt: skip
    for line, count in enumerate(counts):
        own = [row for row in rows if row["count"] == count][::-1]
        for axis, name in zip(axes[line], FIGURES):
            values = [100 * row[name] for row in own]
            low = [100 * (row[name] - row[f"{name}_low"]) for row in own]
            high = [100 * (row[f"{name}_high"] - row[name]) for row in own]
            colours = ["#888888" if row["arm"] == "plain" else "#1b6ca8" for row in own]
            axis.barh([row["arm"] for row in own], values, xerr=[low, high], color=colours, error_kw={"lw": 0.8})
            axis.set_title(f"{count} entities: {name} (%)", fontsize=10)
            axis.set_xlim(0, 100)
    figure.savefig(path, dpi=100)
    plt.close(figure)
