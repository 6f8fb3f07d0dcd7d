"""``evaluate report``: one self-contained HTML file and a Markdown table of a judged run."""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import io
import math
import os
import platform
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image, ImageDraw

from . import plots
from .calibrate import FILE
from .files import write_durably, write_whole
from .flops import STEPS, was_accepted
from .heat import maps_of, overlay
from .results import (
    LEAST,
    MISSING,
    ByPrompt,
    ChangedPair,
    Cost,
    Figure,
    JudgeNote,
    People,
    arms_in_order,
    calibration,
    costs,
    figures,
    in_turn,
    judge_notes,
    moves,
    people,
    telling,
)
from .statistics import Estimate
from .store import IMPORTED, Row, Store

TEMPLATE = "report.html.j2"
THUMB = 112
"""Longer side of a shown picture, in pixels."""
SHEET, SHEET_COLUMNS = "{}.webp", 4
"""Name of the picture of the harmed and of the helped cases beside report.md, and how many stand in a line."""
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "statsmodels", "krippendorff")
NOTE = (
    "Intervals are 95 % of a bootstrap over prompts. Change is against the same prompts and seeds. p flips the sign of "
    "whole prompts and says what holds; p of images (exact McNemar) takes the images as independent, which those of "
    "one prompt are not. Both are corrected for the number of arms within a figure and number of entities (Holm). "
    "Seconds are one machine's, which may have been busy; passes are exact where the host tells them. FLOPs are what "
    "passes, drafts and runs that were given up would take on Stable Diffusion 1.5, over a plain picture of so many "
    "steps."
)


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("report", help="HTML and Markdown of a judged run", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--out", type=Path, help="folder of report.html and report.md (the run's)")
    parser.add_argument("--against", help="the arm that others are compared with (the plan's first, else plain)")
    parser.add_argument("--by", help="the judge that says which prompts and pictures were harmed (drawn, or the first)")
    parser.add_argument(
        "--worst", type=int, help="pictures shown, of harmed and of helped each (one of each arm, 8 at least)"
    )
    parser.add_argument("--prompts", type=int, default=60, help="prompts shown in the HTML; the Markdown has all (60)")
    parser.add_argument("--no-maps", action="store_true", help="show the pictures without attention maps")
    parser.set_defaults(run=run)


@dataclass
class Table:
    """Text for people: the same in HTML and Markdown."""

    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    tones: dict[tuple[int, int], float] = field(default_factory=dict)
    """Row, column -> -1 (all better) .. 1 (all worse), a colour in HTML."""
    groups: set[int] = field(default_factory=set)
    """Rows that begin a group."""

    def markdown(self) -> str:
        """With a line's end."""
        head, *rows = [[literal(cell) for cell in line] for line in (self.head, *self.rows)]
        return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *rows))


_MARKDOWN = re.compile(
    r"""[\\`*_<|~$@\#]  # code, emphasis, HTML, a cell's end, strikes, formulas, names, headings
    | \](?=[(\[:])  # a link's text
    | &(?=\#?\w+;)  # a character's name
    | (?<=\bhttp)s?:(?=//) | (?<=\bftp):(?=//) | (?<=\bwww)\.  # an address that becomes a link by itself
    """,
    re.VERBOSE | re.IGNORECASE,
)


def literal(text: str) -> str:
    """``text`` in one line, so that Markdown shows it as it stands."""
    return _MARKDOWN.sub(
        lambda found: "".join(c if c.isalnum() else f"\\{c}" for c in found[0]), " ".join(text.split())
    )


def fenced(text: str, language: str = "") -> str:
    """``text`` as a block of code, whatever it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


@dataclass
class ShownCase:
    """A harmed or helped case: two rows of pictures."""

    title: str
    rows: list[tuple[str, list[tuple[str, str]]]]
    """Label and (data URL, words under it) of the picture and of each entity's map."""


def _p(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2g}"


def _number_or_not_told(value: float | None, digits: int) -> str:
    return "not told" if value is None else f"{value:.{digits}f}"


def _alpha(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def result_table(figure: Figure, spent: Mapping[tuple[int, str], Cost]) -> Table:
    """One figure, by number of entities and arm, cost beside gain."""
    unit = " %" if figure.share else ""
    table = Table(
        ["entities", "arm", "images", "prompts", f"{figure.name}{unit} [95 %]", "change [95 %]", "p (Holm)",
         "p of images (McNemar, Holm)", "passes", *(f"FLOPs × plain of {steps} steps" for steps in STEPS), "seconds",
         "time ×"]
    )  # fmt: skip
    for i, line in enumerate(figure.lines):
        cost, own = spent[line.count, line.arm], line.estimate
        if i and figure.lines[i - 1].count != line.count:
            table.groups.add(i)
        table.rows.append(
            [
                str(line.count),
                line.arm,
                str(own.images),
                str(own.prompts),
                own.format(figure.scale, figure.digits),
                line.change.difference.format(figure.scale, figure.digits) if line.change else "",
                _p(line.p),
                _p(line.p_images),
                _number_or_not_told(cost.passes, 1),
                *(_number_or_not_told((cost.flops or {}).get(steps), 2) for steps in STEPS),
                _number_or_not_told(cost.seconds, 2),
                "" if cost.times is None else f"{cost.times:.2f}",
            ]
        )
    return table


def said(figure: Figure, label: str, against: str) -> list[str]:
    """What a figure shows in words, an item for each number of entities: what holds, for better and for worse."""
    found = []
    for count in figure.counts:
        lines = [line for line in figure.lines if line.count == count]
        base = next((line for line in lines if line.arm == against), None)
        others = [line for line in lines if line.change]
        if base is None or not others:
            continue

        def told(line: Any) -> str:
            return f"{line.arm} ({line.change.difference.value * figure.scale:+.{figure.digits}f})"

        def better(line: Any) -> bool:
            return (line.change.difference.value < 0) == figure.less_is_better

        good = [told(line) for line in others if line.holds and better(line)]
        bad = [told(line) for line in others if line.holds and not better(line)]
        rest = len(others) - len(good) - len(bad)
        unit = " %" if figure.share else ""
        found.append(
            f"{count} entities, {label}, {figure.name}: {against} "
            f"{base.estimate.value * figure.scale:.{figure.digits}f}{unit}. Better after correction: "
            f"{', '.join(good) or 'none'}. Worse after correction: {', '.join(bad) or 'none'}. "
            f"No change that holds: {rest} of {len(others)}."
        )
    return found


def accepted_none(images: Sequence[Row]) -> list[str]:
    """Of each arm that insists, how many images were drawn though no draft was accepted."""
    found: dict[str, list[bool]] = {}
    for row in images:
        accepted = was_accepted(row)
        if accepted is not None:
            found.setdefault(row["arm"], []).append(accepted)
    return [
        f"{arm}: {own.count(False)} of {len(own)} images were drawn though none of their drafts was accepted."
        for arm, own in found.items()
    ]


def prompt_table(rows: Sequence[ByPrompt], arms: Sequence[str], against: str) -> Table:
    """Prompts x arms: change of the rate of missing in points, the most harmed first."""
    others = [arm for arm in arms if arm != against]
    table = Table(["prompt", "seeds", f"{against} %", *others, "mean change"])
    for i, row in enumerate(rows):
        cells = []
        for j, arm in enumerate(others):
            if arm not in row.after:
                cells.append("")
                continue
            moved = row.after[arm] - row.before
            table.tones[i, 3 + j] = moved
            cells.append(f"{100 * moved:+.0f}" if moved else "0")
        mean = f"{100 * row.change:+.0f}"
        table.rows.append(
            [row.prompt, str(row.seeds), f"{100 * row.before:.0f}", *cells, "0" if row.change == 0 else mean]
        )
    return table


def _truth(own: Mapping[str, Any]) -> str:
    """On what a judge's error was measured. Of a folder its own name only."""
    images = own.get("images", "drawn scenes")
    return images if images == "drawn scenes" else f"the labelled images of {Path(images).name}"


def error_table(known: Mapping[str, Mapping[str, Any]], notes: Mapping[str, JudgeNote]) -> Table:
    """Each judge's precision and recall of "missing" on images whose truth is known."""
    table = Table(["judge", "on", 'precision of "missing" % [95 %]', 'recall of "missing" % [95 %]', "border", "AUC"])
    for name, own in known.items():
        border = "" if own.get("threshold") is None else f"{own['threshold']:.3g}"
        table.rows.append(
            [
                notes[name].label if name in notes else name.partition(":")[0],
                f"{own['n']} of {_truth(own)}" if "n" in own else _truth(own),
                own["precision"].percent(),
                own["recall"].percent(),
                border + (" (the best on others)" if own.get("chosen") else ""),
                _p(own.get("auc")),
            ]
        )
    return table


def error_beside(name: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    """A judge's own error, to be read with its figures."""
    if name not in known:
        return "Its own error was not measured; evaluate calibrate does it."
    own = known[name]
    border = f", below {own['threshold']:.3g} (the best border on others)" if own.get("chosen") else ""
    return (
        f"Its own error on {_truth(own)}: of what it calls missing{border}, {own['precision'].percent()} % is; of what "
        f"is missing it finds {own['recall'].percent()} %."
    )


def preference_table(found: People) -> Table:
    """People's choices by arm."""
    table = Table(
        ["arm", "against", "preferred, ties half % [95 %]", "wins", "losses", "both", "neither", "p (Holm)", "raters",
         "alpha"]
    )  # fmt: skip
    for row in found.rows:
        own = row.preference
        table.rows.append(
            [row.arm, row.base, own.share.percent(), str(own.wins), str(own.losses), str(own.both), str(own.neither),
             _p(row.p), str(row.raters), _alpha(row.agreement)]
        )  # fmt: skip
    return table


def tick_table(found: People) -> Table:
    """What people saw, by arm."""
    table = Table(["arm", "against", "missing something, against % [95 %]", "missing something, arm % [95 %]",
                   "change [95 %]", "p (Holm)"])  # fmt: skip
    for row in found.rows:
        if row.before and row.after and row.change:
            table.rows.append(
                [row.arm, row.base, row.before.percent(), row.after.percent(), row.change.difference.percent(),
                 _p(row.change_p)]
            )  # fmt: skip
    return table


def judges_by_people(found: People, notes: Mapping[str, JudgeNote]) -> Table:
    """The judges' "missing" against what people did not tick, on the run's own pictures."""

    def told(estimate: Estimate | None) -> str:
        return "–" if estimate is None else estimate.percent()

    table = Table(["judge", 'precision of "missing" % [95 %]', 'recall of "missing" % [95 %]'])
    table.rows = [[notes[name].label, told(one), told(two)] for name, (one, two) in found.judges.items()]
    return table


def _url(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "WEBP", quality=72)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def shown_case(store: Store, moved: ChangedPair, maps: Mapping[int, Any]) -> ShownCase:
    """Pictures of both arms with their maps, where there are any. Raises ValueError for an unreadable picture."""
    rows = []
    for row, gone in ((moved.before, moved.missing_before), (moved.after, moved.missing_after)):
        try:
            with Image.open(store.folder / row["file"]) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise ValueError(f"image {row['id']}: {row['file']} cannot be read: {error}") from None
        cells = [(_url(image), f"no {', no '.join(gone)}" if gone else "all there")]
        if row["id"] in maps:
            cells += [
                (_url(overlay(image, own)), f"{entity} {float(own.max()):.2f}")
                for entity, own in zip(row["entities"], maps[row["id"]])
            ]
        rows.append((row["arm"], cells))
    return ShownCase(f"{moved.after['prompt']}, seed {moved.after['seed']}", rows)


def sheet(cases: Sequence[ShownCase]) -> Image.Image:
    """The cases as one picture for Markdown: of each both arms' pictures, with what is missing under them."""
    columns = min(SHEET_COLUMNS, len(cases))
    line, gap = 12, 12
    width, height = 2 * THUMB + 2 + gap, THUMB + 3 * line + gap
    whole = Image.new("RGB", (columns * width - gap, -(-len(cases) // columns) * height - gap), "white")
    pen = ImageDraw.Draw(whole)
    for place, case in enumerate(cases):
        top, left = place // columns * height, place % columns * width
        pen.text((left, top), _cut(case.title, width - gap, pen), fill="black")
        for side, (arm, cells) in enumerate(case.rows):
            url, words = cells[0]
            picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
            x = left + side * (THUMB + 2)
            whole.paste(picture, (x, top + line + 2))
            for row, text in enumerate((arm, words)):
                pen.text((x, top + THUMB + line * (row + 1) + 2), _cut(text, THUMB, pen), fill="black")
    return whole


def _cut(text: str, width: int, pen: ImageDraw.ImageDraw) -> str:
    """As much of ``text`` as fits, in letters that the sheet's font has."""
    own = text.encode("ascii", "replace").decode()
    while pen.textlength(own) > width:
        own = own[:-4].rstrip() + "..."
    return own


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def environment(store: Store, images: Sequence[Row]) -> Table:
    """What drew, and what reported."""
    table = Table(["what", "is"])
    drawn = sorted(
        {
            f"{r['host']}, version {r['version']}, checkpoint {r['checkpoint']}"
            for r in images
            if r["recipe"] != IMPORTED
        }
    )
    imported = Counter(row["arm"] for row in images if row["recipe"] == IMPORTED)
    sampling = sorted(
        {
            ", ".join(f"{k} {v}" for k, v in (r["sampling"] or {}).items() if v not in ("", None) and (v or k == "cfg"))
            for r in images
        }
    )
    aside = Counter(row["arm"] for row in images if row["stood_aside"])
    table.rows = [
        ["images", str(len(images))],
        ["drawn by", "; ".join(drawn)],
        ["imported", "; ".join(f"{arm}: {n} images" for arm, n in imported.items()) or "none"],
        ["sampling", "; ".join(filter(None, sampling)) or "not told"],
        ["guidance stood aside", "; ".join(f"{arm}: {n} images" for arm, n in aside.items()) or "never"],
        *[[name, str(value)] for name, value in (store.notes().get("environment") or {}).items()],
        ["reported on", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python "
         f"{platform.python_version()}"],
        ["packages", ", ".join(map(_version, PACKAGES))],
    ]  # fmt: skip
    return table


def commands(store: Store, against: str, calibrated: Sequence[str]) -> str:
    """What to type to have this again."""
    judges = ",".join(judge if os.path.sep not in judge else _without_folder(judge) for judge in store.judges())
    lines = [_without_folders(line) for line in store.notes().get("commands") or []]
    if store.plans() and not any("evaluate run" in line for line in lines):
        lines.append("python -m lib_decouple evaluate run PLAN.toml")
    lines += [_without_folders(line) for line in store.notes().get("imports") or []]
    lines.append(f"python -m lib_decouple evaluate judge RUN --judges {judges}")
    if calibrated:
        lines.append(f"python -m lib_decouple evaluate calibrate RUN --judges {judges}")
    if store.ratings():
        lines.append("python -m lib_decouple evaluate rate RUN")
    lines.append(f"python -m lib_decouple evaluate report RUN --against {shlex.quote(against)}")
    return "\n".join(lines)


def _without_folders(command: str) -> str:
    """Of a file that was named from the root of one machine, the name alone."""
    absolute = (PurePosixPath, PureWindowsPath)
    words = [
        next((path(word).name for path in absolute if path(word).is_absolute()), word) for word in shlex.split(command)
    ]
    return shlex.join(words)


def _without_folder(judge: str) -> str:
    """A local model's folder stands on one machine only."""
    kind, _, source = judge.partition(":")
    local = source.startswith(("/", ".", "~")) or "\\" in source
    return f"{kind}:FOLDER/{Path(source).name}" if local else judge


def gather(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that the report says, for both its forms. Raises ValueError by name."""
    against = arguments.against or store.base_arm()
    for name in ("worst", "prompts"):
        if (getattr(arguments, name) or 0) < 0:
            raise ValueError(f"{name}: {getattr(arguments, name)} is not allowed; 0 or more")
    images = store.images()
    found, notes = figures(store, against), judge_notes(store)
    arms, spent = arms_in_order(images, against), costs(images, against)
    known, raters = calibration(store.folder / FILE), people(store, against)
    able = telling(notes)
    by = arguments.by or (able[0] if able else None)
    if by is not None and by not in able:
        raise ValueError(f"by: {by!r} is not one of {', '.join(able) or 'none: no judge here says what is missing'}")
    prompts, harmed, helped = moves(store, notes[by], against) if by else ([], [], [])
    number = max(8, len(arms) - 1) if arguments.worst is None else arguments.worst
    some = {"harmed": in_turn(harmed, number), "helped": in_turn(helped, number)}
    pictures = [row for own in some.values() for moved in own for row in (moved.before, moved.after)]
    maps = {} if arguments.no_maps else maps_of(store, pictures)
    limit = arguments.prompts
    cut = prompts if len(prompts) <= limit else [*prompts[: limit - limit // 3], *prompts[len(prompts) - limit // 3 :]]
    return {
        "note": NOTE,
        "against": against,
        "images": len(images),
        "arms": arms,
        "says": [
            one for figure in found if notes[figure.judge].trained is not False
            for one in said(figure, notes[figure.judge].label, against)
        ] + accepted_none(images),
        "figures": [
            {
                "title": f"{notes[figure.judge].label}: {figure.name}",
                "error": error_beside(figure.judge, known) if figure.name in (MISSING, LEAST) else "",
                "table": result_table(figure, spent),
                "plots": [plots.by_arm(figure, count) for count in figure.counts],
            }
            for figure in found
        ],
        "cost_plots": [plots.costs_by_arm(spent, arms, count) for count in sorted({count for count, _ in spent})],
        "errors": error_table(known, notes) if known else None,
        "people": raters,
        "preference": preference_table(raters) if raters else None,
        "ticks": tick_table(raters) if raters else None,
        "judged_by_people": judges_by_people(raters, notes) if raters and raters.judges else None,
        "alpha": _alpha(raters.agreement) if raters else "",
        "ticks_alpha": _alpha(raters.ticks_agreement) if raters else "",
        "by": notes[by].label if by else None,
        "harmed": len(harmed),
        "helped": len(helped),
        "shown": {name: [shown_case(store, moved, maps) for moved in own] for name, own in some.items()},
        "mapped": bool(maps),
        "prompts": prompt_table(prompts, arms, against),
        "prompts_cut": prompt_table(cut, arms, against),
        "prompts_left": len(prompts) - len(cut),
        "environment": environment(store, images),
        "commands": commands(store, against, list(known)),
        "plan": store.plans()[-1]["text"] if store.plans() else "",
    }  # fmt: skip


def as_markdown(told: Mapping[str, Any]) -> str:
    """The figures, and the pictures that :func:`sheet` makes beside them."""
    parts = [f"# Evaluation\n\n{told['note']}\n", *[f"- {literal(one)}" for one in told["says"]]]
    for figure in told["figures"]:
        parts += [f"\n## {literal(figure['title'])}\n", *([literal(figure["error"]) + "\n"] if figure["error"] else []),
                  figure["table"].markdown()]  # fmt: skip
    parts.append("\n## The judges' own error\n")
    parts.append(told["errors"].markdown() if told["errors"] else "Not measured: `evaluate calibrate` does it.\n")
    parts.append("\n## People\n")
    if told["people"]:
        own = told["people"]
        parts += [
            f"{own.ratings} blind choices of {own.raters} raters. Krippendorff's alpha: choices {told['alpha']}, "
            f"things seen {told['ticks_alpha']}.\n",
            told["preference"].markdown(),
            "" if not told["ticks"].rows else "\n" + told["ticks"].markdown(),
            "\n" + told["judged_by_people"].markdown() if told["judged_by_people"] else "",
        ]
    else:
        parts.append("Nobody has rated: `evaluate rate` lets people do it.\n")
    if told["by"]:
        by, against = literal(told["by"]), literal(told["against"])
        parts += [
            f"\n## Pairs\n\nAs {by} says, {against} showed all and the arm did not in {told['harmed']} "
            f"pairs of pictures; the arm showed all and {against} did not in {told['helped']}.\n",
            *[f"\n{name}:\n\n![{name}]({SHEET.format(name)})\n" for name, cases in told["shown"].items() if cases],
            "\n## Prompts, the most harmed first\n\nChange of the rate of missing something, in points.\n",
            told["prompts"].markdown(),
        ]
    parts += ["\n## Environment and commands\n", told["environment"].markdown(), "\n" + fenced(told["commands"])]
    if told["plan"]:
        parts.append("\n" + fenced(told["plan"].strip(), "toml"))
    return "\n".join(parts) + "\n"


def as_html(told: Mapping[str, Any]) -> str:
    """One file that needs no other. Raises ValueError where Jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        raise ValueError("report: needs the package jinja2; `pip install -r requirements-evaluate.txt`") from None
    own = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return own.get_template(TEMPLATE).render(told)


def run(arguments: argparse.Namespace) -> int:
    """Write report.html, report.md, and the pictures of the latter."""
    store = Store(arguments.folder)
    told = gather(store, arguments)
    out = arguments.out or store.folder
    write_whole(out / "report.html", as_html(told))
    write_whole(out / "report.md", as_markdown(told))
    for name, cases in told["shown"].items():
        if cases:
            data = io.BytesIO()
            sheet(cases).save(data, "WEBP", quality=72)
            write_durably(out / SHEET.format(name), data.getvalue())
        else:
            (out / SHEET.format(name)).unlink(missing_ok=True)
    print(f"{out / 'report.html'}, {out / 'report.md'}")
    return 0
