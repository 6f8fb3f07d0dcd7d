"""``evaluate report``: one self-contained HTML file and a Markdown table of a judged run."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..study.files import write_whole
from .calibrate import FILE
from .statistics import Estimate, change, holm, mean
from .store import Row, Store

BORDERS = {"detector": 0.5, "vqa": 0.5, "caption": 0.5}
"""Judges that say "missing", and the score below which they do."""


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("report", help="HTML and Markdown of a judged run", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--out", type=Path, help="folder of report.html and report.md (the run's)")
    parser.add_argument("--against", default="plain", help="the arm that others are compared with (plain)")
    parser.add_argument("--worst", type=int, default=6, help="image pairs shown, worst and best (6)")
    parser.set_defaults(run=run)


def figure(judge: str, scores: dict[str, float]) -> dict[str, float]:
    """One image's figures: name -> value."""
    own = {key: value for key, value in scores.items() if key}
    found = {}
    if judge in BORDERS and own:
        found[f"{judge}: missing"] = float(min(own.values()) < BORDERS[judge])
    elif own:
        found[f"{judge}: least-served entity"] = min(own.values())
    if "" in scores:
        found[f"{judge}: {'exactly right' if judge == 'detector' else 'whole prompt'}"] = scores[""]
    return found


def tables(store: Store, against: str) -> list[Row]:
    """One row for each number of entities, figure and arm. Raises ValueError where nothing is judged."""
    images = {row["id"]: row for row in store.images()}
    if not store.judges():
        raise ValueError("run: no image is judged yet; `evaluate judge` does it")
    if against not in {row["arm"] for row in images.values()}:
        raise ValueError(f"against: {against!r} is not one of {', '.join(sorted({r['arm'] for r in images.values()}))}")
    values: dict[tuple[int, str], dict[str, dict[tuple[str, int], float]]] = {}
    for judge in store.judges():
        for image, scores in store.scores(judge).items():
            if image not in images:
                continue
            row = images[image]
            for name, value in figure(judge, scores).items():
                own = values.setdefault((row["count"], name), {}).setdefault(row["arm"], {})
                own[row["prompt_id"], row["seed"]] = value
    found = []
    for (count, name), arms in sorted(values.items()):
        rows: dict[str, Row] = {}
        for arm, own in arms.items():
            estimate = mean(list(own.values()), [p for p, _ in own])
            rows[arm] = {"count": count, "figure": name, "arm": arm, "estimate": estimate, "change": None, "p": None}
            both = [key for key in own if key in arms.get(against, {})]
            if arm != against and both:
                rows[arm]["change"] = change(
                    [arms[against][k] for k in both], [own[k] for k in both], [p for p, _ in both]
                )
        corrected = holm({arm: row["change"].p for arm, row in rows.items() if row["change"]})
        found += [row | {"p": corrected.get(row["arm"])} for row in rows.values()]
    return found


def costs(images: Sequence[Row]) -> list[Row]:
    """Seconds and guided passes by number of entities and arm."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in images:
        groups.setdefault((row["count"], row["arm"]), []).append(row)
    return [
        {
            "count": count,
            "arm": arm,
            "images": len(own),
            "seconds": sum(r["seconds"] or 0.0 for r in own) / len(own),
            "passes": sum(r["passes"] or 0 for r in own) / len(own),
        }
        for (count, arm), own in sorted(groups.items(), key=lambda pair: pair[0][0])
    ]


def as_markdown(rows: Sequence[Row], spent: Sequence[Row]) -> str:
    """The tables; shares in per cent."""
    cost = {(row["count"], row["arm"]): row for row in spent}
    lines = [
        "| entities | figure | arm | images | prompts | value [95 %] | change [95 %] | p (Holm) | seconds | passes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own: Estimate = row["estimate"]
        scale, digits = (100, 1) if "missing" in row["figure"] or "right" in row["figure"] else (1, 3)
        moved = row["change"].difference.format(scale, digits) if row["change"] else ""
        p = "" if row["p"] is None else f"{row['p']:.2g}"
        used = cost[row["count"], row["arm"]]
        lines.append(
            f"| {row['count']} | {row['figure']}{' %' if scale == 100 else ''} | {row['arm']} | {own.images} | "
            f"{own.prompts} | {own.format(scale, digits)} | {moved} | {p} | {used['seconds']:.2f} | "
            f"{used['passes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], spent: Sequence[Row]) -> str:
    """Inline SVG: each figure by arm, and below it against the guided passes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = sorted({(row["figure"], row["count"]) for row in rows})
    passes = {(row["count"], row["arm"]): row["passes"] for row in spent}
    with plt.rc_context({"svg.fonttype": "path", "text.color": "#777", "axes.labelcolor": "#777", "xtick.color": "#777",
                         "ytick.color": "#777", "axes.edgecolor": "#777"}):  # fmt: skip
        drawn, axes = plt.subplots(
            len(groups), 2, figsize=(9, 2.9 * len(groups)), squeeze=False, constrained_layout=True
        )
        for (left, right), (name, count) in zip(axes, groups):
            for row in (r for r in rows if (r["figure"], r["count"]) == (name, count)):
                own: Estimate = row["estimate"]
                error = [[own.value - own.low], [own.high - own.value]]
                look = {"fmt": "o", "color": "#888888" if row["arm"] == "plain" else "#2b8cbe", "lw": 1}
                left.errorbar([own.value], [row["arm"]], xerr=error, **look)
                right.errorbar([passes[count, row["arm"]]], [own.value], yerr=error, **look)
            left.invert_yaxis()
            left.set_title(f"{name}, {count} entities", fontsize=9)
            right.set_xlabel("guided passes an image")
        text = io.StringIO()
        drawn.savefig(text, format="svg", transparent=True)
        plt.close(drawn)
    return text.getvalue()[text.getvalue().index("<svg") :]


def moved(store: Store, against: str) -> list[tuple[str, float, float, int]]:
    """Prompt, rate of missing before and after (mean of the other arms), images; the most harmed first."""
    judge = next((name for name in BORDERS if name in store.judges()), None)
    if judge is None:
        return []
    scores = store.scores(judge)
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for row in store.images():
        if row["id"] in scores:
            own = groups.setdefault(row["prompt"], ([], []))
            own[row["arm"] != against].append(figure(judge, scores[row["id"]])[f"{judge}: missing"])
    rows = [(p, sum(b) / len(b), sum(a) / len(a), len(a) + len(b)) for p, (b, a) in groups.items() if a and b]
    return sorted(rows, key=lambda row: row[1] - row[2])


def pairs(store: Store, against: str, limit: int) -> tuple[list[tuple[Row, Row]], list[tuple[Row, Row]], int, int]:
    """Images harmed (whole before, something missing after) and helped, at most ``limit`` each, and how many in all.

    Taken in the order drawn, one for each arm in turn, so that no arm is left out and none is picked by looks.
    """
    judge = next((name for name in BORDERS if name in store.judges()), None)
    if judge is None:
        return [], [], 0, 0
    scores = store.scores(judge)
    rows = {(r["prompt_id"], r["seed"], r["arm"]): r for r in store.images() if r["id"] in scores}
    harmed: dict[str, list[tuple[Row, Row]]] = {}
    helped: dict[str, list[tuple[Row, Row]]] = {}
    for (prompt, seed, arm), row in rows.items():
        base = rows.get((prompt, seed, against))
        if arm == against or base is None:
            continue
        before, after = (figure(judge, scores[r["id"]])[f"{judge}: missing"] for r in (base, row))
        if before != after:
            (harmed if after else helped).setdefault(arm, []).append((base, row))

    def spread(own: dict[str, list[tuple[Row, Row]]]) -> list[tuple[Row, Row]]:
        longest = max(map(len, own.values()), default=0)
        return [group[i] for i in range(longest) for group in own.values() if i < len(group)][:limit]

    count = [sum(map(len, own.values())) for own in (harmed, helped)]
    return spread(harmed), spread(helped), count[0], count[1]


def _image(store: Store, row: Row) -> str:
    with Image.open(store.folder / row["file"]) as image:
        small = image.convert("RGB")
        small.thumbnail((160, 160))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _grid(store: Store, shown: Sequence[tuple[Row, Row]]) -> str:
    cells = "".join(
        "<figure>"
        + "".join(f'<img src="{_image(store, r)}" alt="{html.escape(r["arm"])}">' for r in pair)
        + f"<figcaption>{html.escape(pair[1]['prompt'])}: {html.escape(pair[0]['arm'])}, then "
        f"{html.escape(pair[1]['arm'])}; seed {pair[1]['seed']}</figcaption></figure>"
        for pair in shown
    )
    return f'<div class="grid">{cells}</div>'


def _table(markdown: str) -> str:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.strip().splitlines()]
    head = "".join(f"<th>{html.escape(c)}</th>" for c in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in lines[2:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_STYLE = """
:root{color-scheme:light dark}body{font:14px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;
color:#222;background:#fff}table{border-collapse:collapse;font-size:12px;width:100%}th,td{border-bottom:1px solid #8886;
padding:.2rem .4rem;text-align:left}svg{max-width:100%;height:auto}.grid{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;width:15rem}figure img{width:48%;margin-right:1%}figcaption{font-size:11px}pre{white-space:pre-wrap}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}
@media print{body{color:#000;background:#fff;max-width:none;margin:0}thead{display:table-header-group}
tr,figure{break-inside:avoid}h2{break-after:avoid}table{font-size:9px}@page{size:A4;margin:14mm}}
"""


def run(arguments: argparse.Namespace) -> int:
    """Write report.html and report.md."""
    store = Store(arguments.folder)
    rows, images = tables(store, arguments.against), store.images()
    spent = costs(images)
    table = as_markdown(rows, spent)
    harmed, helped, harms, helps = pairs(store, arguments.against, arguments.worst)
    prompts = moved(store, arguments.against)
    prompt_table = "| prompt | missing % before | after, mean of the arms | images |\n|---|---|---|---|\n" + "".join(
        f"| {p} | {100 * b:.0f} | {100 * a:.0f} | {n} |\n" for p, b, a, n in prompts
    )
    calibration = store.folder / FILE
    known = json.loads(calibration.read_text()) if calibration.exists() else {}
    errors = "".join(
        f"| {judge} | {Estimate(**own['precision']).percent()} | {Estimate(**own['recall']).percent()} |\n"
        for judge, own in known.items()
    )
    errors = (
        f'| judge | precision of "missing" % | recall of "missing" % |\n|---|---|---|\n{errors}'
        if errors
        else "Not measured: `evaluate calibrate` does it.\n"
    )
    hosts = sorted({f"{r['host']}, version {r['version']}, checkpoint {r['checkpoint']}" for r in images})
    environment = (
        f"{len(images)} images. Drawn by {'; '.join(hosts)}.\n"
        f"Reported on Python {platform.python_version()}.\n"
        f"Judged by {', '.join(store.judges())}.\n\n"
        f"python -m lib_decouple evaluate judge RUN --judges {','.join(store.judges())}\n"
        f"python -m lib_decouple evaluate report RUN --against {arguments.against}\n"
    )
    note = (
        "Intervals are a bootstrap over prompts; p flips the sign of whole prompts and is corrected for the number "
        "of arms within a figure. Change is against the same prompts and seeds. Seconds are one machine's, which may "
        "have been busy; passes are exact."
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Evaluation</title><style>{_STYLE}</style><h1>Evaluation</h1><p>{note}</p>{_table(table)}"
        f"<h2>The judges' own error</h2>{_table(errors) if known else html.escape(errors)}"
        f"<h2>Gain and cost</h2>{plot(rows, spent)}"
        f"<h2>Harmed</h2><p>{harms} pairs of images; {len(harmed)} shown.</p>{_grid(store, harmed)}"
        f"<h2>Helped</h2><p>{helps} pairs of images; {len(helped)} shown.</p>{_grid(store, helped)}"
        f"<h2>Prompts, the most harmed first</h2>{_table(prompt_table)}"
        f"<h2>Environment and commands</h2><pre>{html.escape(environment)}</pre></html>"
    )
    out = arguments.out or store.folder
    write_whole(out / "report.html", page)
    write_whole(
        out / "report.md",
        f"# Evaluation\n\n{note}\n\n{table}\n## The judges' own error\n\n{errors}\n## Pairs\n\n{harms} harmed, {helps} "
        f"helped.\n\n## Prompts, the most harmed first\n\n{prompt_table}\n```\n{environment}```\n",
    )
    print(f"{out / 'report.html'}, {out / 'report.md'}")
    return 0
