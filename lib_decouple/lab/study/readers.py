"""``study readers``: what two blind readers say of a run's pictures, beside the judge.

One row of ``--labels`` is a thing that a picture was asked for: who read what, and what the judge said. Pictures are a
random part of each arm's strata (those that the judge calls incomplete, and the others), so each counts for
``stratum_size / pictures read of the stratum`` pictures of the arm. Intervals are of what was not read, not of other
prompts: what none of a few pictures shows may still stand in those that nobody saw.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluate.files import read_text, write_whole
from ..evaluate.statistics import RESAMPLES, agreement

NEEDS = (
    "set", "arm", "prompt", "seed", "stratum", "stratum_size", "thing", "judge", "first", "second", "judge_extra",
    "first_extra", "second_extra",
)  # fmt: skip
"""Columns of the table of labels."""
WORDS = ("there", "mangled", "hybrid", "absent")
"""Of a reader, for a thing. *Mangled*: an object of its own, broken or too shapeless to be named; *hybrid*: the only
object that could be it is a mixture with another thing."""
ALLOWED = {
    "judge": ("there", "missing"),
    "first": WORDS,
    "second": WORDS,
    "first_extra": ("0", "1"),
    "second_extra": ("0", "1"),
}
"""Column -> what it may hold."""
VERDICTS = ("absent", "no object of its own", "mangled", "doubtful", "there")


@dataclass(frozen=True)
class Read:
    """A picture with what was said of its things, each of :data:`VERDICTS`."""

    set: str
    arm: str
    stratum: str
    stratum_size: int
    things: tuple[str, ...]
    judged: tuple[str, ...]
    """Of the same things, "there" or "missing"."""
    extra: bool
    """Both readers see something extra."""
    extra_judged: bool


def verdict(first: str, second: str) -> str:
    """What both readers bear out. *No object of its own* has the absent that only one calls so, *mangled* everything
    else that neither calls there, and *doubtful* is what one does. Raises ValueError for another word."""
    both = {first, second}
    if wrong := both - set(WORDS):
        raise ValueError(f"first, second: {min(wrong)!r} is not one of {', '.join(WORDS)}")
    if both == {"there"}:
        return "there"
    if "there" in both:
        return "doubtful"
    if both == {"absent"}:
        return "absent"
    return "no object of its own" if both <= {"absent", "hybrid"} else "mangled"


def read_table(path: Path) -> list[Mapping[str, str]]:
    """Rows of labels. Raises ValueError for a column that is lacking, and by line for a value; FileNotFoundError."""
    rows: list[Mapping[str, str]] = list(csv.DictReader(io.StringIO(read_text("labels", path))))
    if lacking := set(NEEDS) - set(rows[0] if rows else ()):
        raise ValueError(f"labels: {path} has no column {min(lacking)!r}; it needs {', '.join(NEEDS)}")
    for number, row in enumerate(rows, 2):
        if not row["stratum_size"].isdigit() or int(row["stratum_size"]) == 0:
            raise ValueError(f"labels: line {number}: stratum_size: {row['stratum_size']!r} is not a number from 1 on")
        for name, allowed in ALLOWED.items():
            if row[name] not in allowed:
                raise ValueError(f"labels: line {number}: {name}: {row[name]!r} is not one of {', '.join(allowed)}")
    return rows


def pictures(rows: Sequence[Mapping[str, str]]) -> list[Read]:
    """Rows of the same set, arm, prompt and seed are one picture."""
    own: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        own.setdefault((row["set"], row["arm"], row["prompt"], row["seed"]), []).append(row)
    return [
        Read(
            some[0]["set"], some[0]["arm"], some[0]["stratum"], int(some[0]["stratum_size"]),
            tuple(verdict(row["first"], row["second"]) for row in some), tuple(row["judge"] for row in some),
            {some[0]["first_extra"], some[0]["second_extra"]} == {"1"}, some[0]["judge_extra"] != "0",
        )
        for some in own.values()
    ]  # fmt: skip


def says_of(words: Sequence[str]) -> Callable[[Read], float]:
    """How many of a picture's things have one of these verdicts."""
    return lambda one: float(sum(word in words for word in one.things))


def share_of(word: str) -> Callable[[Read], float]:
    """Which share of a picture's things has this verdict; pictures of one set are asked for as many."""
    return lambda one: one.things.count(word) / len(one.things)


GONE = says_of(("absent", "no object of its own"))
FIGURES: dict[str, Callable[[Read], float]] = {
    "pictures that lack an object of its own for a thing": lambda one: float(GONE(one) > 0),
    "pictures with a thing that neither calls there": lambda one: float(says_of(VERDICTS[:3])(one) > 0),
    "pictures with something extra": lambda one: float(one.extra),
    "the same, by the judge": lambda one: float(one.extra_judged),
    "pictures in which all is there": lambda one: float(set(one.things) == {"there"}),
    "all there and nothing extra": lambda one: float(set(one.things) == {"there"} and not one.extra),
    **{f"things: {word}": share_of(word) for word in VERDICTS},
}
"""Share of an arm's pictures, and of its things; *extra* and *there* by both readers."""
LOST: dict[str, Callable[[Read], float]] = {
    "absent": says_of(VERDICTS[:1]),
    "absent, or no object of its own": GONE,
    "not there: these, or mangled": says_of(VERDICTS[:3]),
}
"""Of which it is asked how much an arm brings back, by number of things."""


def estimate(found: Sequence[Read], figure: Callable[[Read], float], step: float, seed: int = 0) -> np.ndarray:
    """The figure's mean over all pictures of the arm, ``[1 + resamples]``, the estimate itself first.

    Resamples are a Bayesian bootstrap of each stratum (Rubin, 1981) with half a picture more that has none of what is
    counted, and half a one that has ``step`` of it: one thing, or the picture. Of a share of pictures that makes
    Jeffreys' interval, so that none of 12 leaves up to 19 %, where resampling the 12 alone would leave none. Arms of
    which other pictures were read are resampled apart, by another ``seed``.
    """
    rng = np.random.default_rng(seed)
    total, value = 0, np.zeros(1 + RESAMPLES)
    for stratum in sorted({one.stratum for one in found}):
        own = [one for one in found if one.stratum == stratum]
        values = np.array([figure(one) for one in own])
        weights = rng.gamma([1.0] * len(own) + [0.5, 0.5], size=(RESAMPLES, len(own) + 2))
        resampled = weights @ np.append(values, [0, step]) / weights.sum(1)
        value += own[0].stratum_size * np.append(values.mean(), resampled)
        total += own[0].stratum_size
    return value / total


def _shown(values: np.ndarray) -> str:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return f"{100 * values[0]:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def judged_table(found: Sequence[Read]) -> str:
    """What the readers say of things that the judge calls missing, or there."""
    lines = [f"| pictures | arm | the judge says | things | {' | '.join(VERDICTS)} |", "|---" * 9 + "|"]
    for name, arm in dict.fromkeys((one.set, one.arm) for one in found):
        own = [one for one in found if (one.set, one.arm) == (name, arm)]
        for said in ("missing", "there"):
            count = Counter(word for one in own for word, judged in zip(one.things, one.judged) if judged == said)
            cells = [name, arm, said, str(sum(count.values())), *(str(count[word]) for word in VERDICTS)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def weighted_table(found: Sequence[Read], base: str) -> str:
    """Shares of each arm's pictures, and what it brings back of what ``base`` lacks; per cent, 95 % intervals."""
    columns = list(dict.fromkeys((one.set, one.arm) for one in found))
    lines = [f"| % | {' | '.join(f'{name}, {arm}' for name, arm in columns)} |", "|---" * (1 + len(columns)) + "|"]
    own = {column: [one for one in found if (one.set, one.arm) == column] for column in columns}
    for words, figure in FIGURES.items():
        step = 1 / len(found[0].things) if words.startswith("things") else 1
        lines.append(f"| {words} | {' | '.join(_shown(estimate(own[column], figure, step)) for column in columns)} |")
    for words, lost in LOST.items():
        cells = []
        for name, arm in columns:
            before = estimate(own[name, base], lost, 1) if arm != base and (name, base) in own else None
            if before is None or not before[0]:
                cells.append("")
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                share = 1 - estimate(own[name, arm], lost, 1, seed=1) / before
            share[~np.isfinite(share)] = np.nan
            cells.append(_shown(share))
        lines.append(f"| brought back: {words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("readers", help="what two readers say, beside the judge", description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="the table of labels, as docs/results/eyes has one")
    parser.add_argument("--against", default="plain", help="the arm of which things are brought back (plain)")
    parser.add_argument("--out", type=Path, default=Path("out/readers"), help="folder of the results (out/readers)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write readers.md."""
    rows = read_table(arguments.labels)
    found = pictures(rows)
    if arguments.against not in (arms := sorted({one.arm for one in found})):
        raise ValueError(f"against: {arguments.against!r} is not one of {', '.join(arms)}")
    said = [(who, f"{k}", row[who]) for k, row in enumerate(rows) for who in ("first", "second")]
    alike = sum(row["first"] == row["second"] for row in rows)
    text = (
        f"{len(found)} pictures, {len(rows)} things. The readers use the same word of {alike} things "
        f"(Krippendorff's alpha {agreement(said):.2f}).\n\n{judged_table(found)}\n"
        f"{weighted_table(found, arguments.against)}"
    )
    write_whole(arguments.out / "readers.md", text)
    print(text)
    return 0
