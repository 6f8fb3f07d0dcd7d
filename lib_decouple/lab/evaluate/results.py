"""What a judged and rated run says, as numbers: by arm, by prompt, by pair, by people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flops import mean_times_plain
from .judges.base import COLOUR, EXTRA, MARK
from .statistics import Change, Estimate, Preference, agreement, change, holm, mean, preference
from .store import Row, Store

Scores = dict[int, dict[str, float]]


@dataclass(frozen=True)
class JudgeNote:
    """What the store knows of a judge."""

    name: str
    source: str = ""
    """Its model, as the command line named it."""
    threshold: float | None = None
    """An entity whose score is below it is missing; None: the judge has no such border."""
    trained: bool | None = None
    known: bool = True

    @property
    def label(self) -> str:
        """Name and model. Of a folder its own name only: the rest is one machine's business."""
        kind = self.name.partition(":")[0]
        local = self.source.startswith(("/", ".", "~")) or "\\" in self.source
        model = Path(self.source.replace("\\", "/")).name if local else self.source
        said = f"{kind} ({model})" if model else kind
        if not self.known:
            said += " (model not recorded)"
        return f"{said}: RANDOM WEIGHTS, NOT A RESULT" if self.trained is False else said


def judge_notes(store: Store) -> dict[str, JudgeNote]:
    """Of every judge that has scored."""
    notes = store.notes()
    found = {}
    for name in store.judges():
        own = notes.get(f"judge:{name}")
        found[name] = JudgeNote(name, known=False) if own is None else _note(name, own)
    return found


def _note(name: str, own: Mapping[str, Any]) -> JudgeNote:
    return JudgeNote(name, own.get("source") or "", own.get("threshold"), own.get("trained"))


@dataclass
class Line:
    """One arm and number of entities."""

    count: int
    arm: str
    estimate: Estimate
    change: Change | None = None
    """Against the same prompts and seeds of the arm compared with."""
    p: float | None = None
    """Over prompts, corrected for the number of arms (Holm)."""
    p_images: float | None = None
    """Image by image (exact McNemar), corrected likewise; None for what is no yes/no."""

    @property
    def holds(self) -> bool:
        """Whether the change is there after correction, over prompts."""
        return self.p is not None and self.p < 0.05


@dataclass
class Figure:
    """One of a judge's figures."""

    judge: str
    name: str
    share: bool
    """Of images, so shown in per cent; else a score."""
    less_is_better: bool
    lines: list[Line] = field(default_factory=list)

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be shown."""
        return 100.0 if self.share else 1.0

    @property
    def digits(self) -> int:
        """After the point."""
        return 1 if self.share else 3

    @property
    def counts(self) -> list[int]:
        """Numbers of entities."""
        return sorted({line.count for line in self.lines})


MISSING, RIGHT, LEAST, WHOLE = "missing something", "exactly right", "least-served entity", "whole prompt"
MORE, ANOTHER_COLOUR = "something extra", "wrong colour of what is there"
SHARES = (MISSING, MORE, ANOTHER_COLOUR, RIGHT)
"""Figures that are shares, of images or of the things in each; the others are mean scores."""
RULES = ("drawn",)
"""Judges of the embedded models: they see everything that these can draw, so their whole score is "exactly right"."""


def figures_of(judge: JudgeNote, scores: Mapping[str, float]) -> dict[str, float]:
    """One image's figures by name."""
    own = [value for key, value in scores.items() if key and not key.startswith(MARK)]
    found: dict[str, float] = {}
    if own and judge.threshold is not None:
        found[MISSING] = float(min(own) < judge.threshold)
    elif own:
        found[LEAST] = min(own)
    if "" in scores:
        found[RIGHT if judge.name in RULES else WHOLE] = scores[""]
    if EXTRA in scores:
        found[MORE] = float(scores[EXTRA] > 0)
    colours = [value for key, value in scores.items() if key.startswith(COLOUR)]
    if colours:
        found[ANOTHER_COLOUR] = 1 - sum(colours) / len(colours)
    return found


def arms_in_order(images: Sequence[Row], against: str) -> list[str]:
    """As drawn, the one compared with first."""
    return sorted(dict.fromkeys(row["arm"] for row in images), key=lambda arm: arm != against)


def figures(store: Store, against: str) -> list[Figure]:
    """All figures of all judges. Raises ValueError where nothing is judged or ``against`` was not drawn."""
    images = {row["id"]: row for row in store.images()}
    arms = arms_in_order(list(images.values()), against)
    if against not in arms:
        raise ValueError(f"against: {against!r} is not one of {', '.join(arms) or 'none, since nothing is drawn'}")
    notes = judge_notes(store)
    if not notes:
        raise ValueError("run: no image is judged yet; `evaluate judge` does it")
    found = []
    for judge in notes.values():
        values: dict[str, dict[tuple[int, str], dict[tuple[str, int], float]]] = {}
        for image, scores in store.scores(judge.name).items():
            if row := images.get(image):
                for name, value in figures_of(judge, scores).items():
                    own = values.setdefault(name, {}).setdefault((row["count"], row["arm"]), {})
                    own[row["prompt_id"], row["seed"]] = value
        for name in (MISSING, LEAST, MORE, ANOTHER_COLOUR, RIGHT, WHOLE):
            if name in values:
                figure = Figure(judge.name, name, name in SHARES, name in (MISSING, MORE, ANOTHER_COLOUR))
                figure.lines = _lines(values[name], arms, against)
                found.append(figure)
    return found


def _lines(
    groups: Mapping[tuple[int, str], Mapping[tuple[str, int], float]], arms: Sequence[str], against: str
) -> list[Line]:
    lines = []
    for count in sorted({count for count, _ in groups}):
        block = []
        base = groups.get((count, against), {})
        for arm in arms:
            own = groups.get((count, arm))
            if own is None:
                continue
            line = Line(count, arm, mean(list(own.values()), [prompt for prompt, _ in own]))
            both = [key for key in own if key in base]
            if arm != against and both:
                line.change = change([base[k] for k in both], [own[k] for k in both], [p for p, _ in both])
            block.append(line)
        changes = {line.arm: line.change for line in block if line.change}
        by_prompt = holm({arm: own.p for arm, own in changes.items()})
        by_image = holm({arm: own.p_images for arm, own in changes.items() if own.p_images is not None})
        for line in block:
            line.p, line.p_images = by_prompt.get(line.arm), by_image.get(line.arm)
        lines += block
    return lines


@dataclass(frozen=True)
class Cost:
    """Of one arm and number of entities, an image; None where the host does not tell."""

    passes: float | None
    seconds: float | None
    times: float | None
    """Seconds over those of the arm compared with."""
    flops: Mapping[int, float] | None = None
    """By number of steps, over a plain picture's of so many (:mod:`flops`)."""


def costs(images: Sequence[Row], against: str) -> dict[tuple[int, str], Cost]:
    """By number of entities and arm."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in images:
        groups.setdefault((row["count"], row["arm"]), []).append(row)

    def average(rows: Sequence[Row], name: str) -> float | None:
        told = [row[name] for row in rows if row[name] is not None]
        return sum(told) / len(told) if told else None

    seconds = {key: average(rows, "seconds") for key, rows in groups.items()}
    found = {}
    for (count, arm), rows in groups.items():
        own, base = seconds[count, arm], seconds.get((count, against))
        found[count, arm] = Cost(
            average(rows, "passes"), own, own / base if own and base else None, mean_times_plain(rows)
        )
    return found


def telling(notes: Mapping[str, JudgeNote]) -> list[str]:
    """Judges that say "missing", those of the embedded models first."""
    able = [name for name, note in notes.items() if note.threshold is not None and note.trained is not False]
    return sorted(able, key=lambda name: name not in RULES)


@dataclass(frozen=True)
class ChangedPair:
    """A pair of which one picture shows all and the other not, as a judge says: harmed where that is the arm's."""

    before: Row
    after: Row
    missing_before: tuple[str, ...]
    missing_after: tuple[str, ...]

    @property
    def entities(self) -> int:
        """How many were lost, or got back."""
        return max(len(self.missing_before), len(self.missing_after))


@dataclass
class ByPrompt:
    """A prompt's rate of missing, plain and by arm."""

    prompt: str
    entities: tuple[str, ...]
    seeds: int
    before: float
    after: dict[str, float]

    @property
    def change(self) -> float:
        """Mean over the arms; above 0 is harm."""
        return sum(self.after.values()) / len(self.after) - self.before


def moves(store: Store, judge: JudgeNote, against: str) -> tuple[list[ByPrompt], list[ChangedPair], list[ChangedPair]]:
    """Prompts, the most harmed first; images harmed; images helped, in the order drawn. By one judge that can tell."""
    if judge.threshold is None:
        raise ValueError(f"by: {judge.name} has no border between there and missing")
    scores, border = store.scores(judge.name), judge.threshold
    rows = [row for row in store.images() if row["id"] in scores]
    cases: dict[tuple[str, int], dict[str, tuple[Row, tuple[str, ...]]]] = {}
    for row in rows:
        gone = tuple(e for e in row["entities"] if scores[row["id"]].get(e, border) < border)
        cases.setdefault((row["prompt_id"], row["seed"]), {})[row["arm"]] = row, gone
    harmed: list[ChangedPair] = []
    helped: list[ChangedPair] = []
    prompts: dict[str, dict[str, list[float]]] = {}
    first: dict[str, Row] = {}
    for (prompt, _), arms in cases.items():
        if against not in arms:
            continue
        base, gone_before = arms[against]
        first.setdefault(prompt, base)
        for arm, (row, gone) in arms.items():
            prompts.setdefault(prompt, {}).setdefault(arm, []).append(float(bool(gone)))
            if bool(gone) != bool(gone_before):
                (harmed if gone else helped).append(ChangedPair(base, row, gone_before, gone))
    found = []
    for prompt, own in prompts.items():
        rate = {arm: sum(values) / len(values) for arm, values in own.items()}
        before = rate.pop(against)
        if rate:
            row = first[prompt]
            found.append(ByPrompt(row["prompt"], tuple(row["entities"]), len(own[against]), before, rate))
    return sorted(found, key=lambda one: -one.change), harmed, helped


def in_turn(moved: Sequence[ChangedPair], limit: int) -> list[ChangedPair]:
    """At most ``limit``: each arm's case of the most entities, then each arm's next; told with the most entities first.

    Among equals the order drawn decides: no arm is left out, none picked by looks.
    """

    def worst_first(some: Sequence[ChangedPair]) -> list[ChangedPair]:
        return sorted(some, key=lambda one: -one.entities)

    groups: dict[str, list[ChangedPair]] = {}
    for one in worst_first(moved):
        groups.setdefault(one.after["arm"], []).append(one)
    longest = max(map(len, groups.values()), default=0)
    taken = [own[i] for i in range(longest) for own in groups.values() if i < len(own)][:limit]
    return worst_first(taken)


@dataclass
class Compared:
    """What people said of an arm against another, blind."""

    arm: str
    base: str
    raters: int
    preference: Preference
    agreement: float
    """Krippendorff's alpha of the choices; NaN where no pair has two raters."""
    p: float = math.nan
    """Over prompts, corrected for the number of arms (Holm)."""
    before: Estimate | None = None
    """Share of pictures of ``base`` in which a rater did not tick every named thing."""
    after: Estimate | None = None
    change: Change | None = None
    change_p: float | None = None


@dataclass
class People:
    """All that raters said."""

    raters: int
    ratings: int
    rows: list[Compared]
    agreement: float
    """Krippendorff's alpha of all choices, as the arm's win or loss: arms' names would be alike by design."""
    ticks_agreement: float
    """Krippendorff's alpha of what was seen, entity by entity."""
    judges: dict[str, tuple[Estimate | None, Estimate | None]]
    """Judge -> precision and recall of its "missing", an entity that a rater did not tick being truly missing."""


def people(store: Store, against: str) -> People | None:
    """None where nobody has rated."""
    images = {row["id"]: row for row in store.images()}
    ratings = [row for row in store.ratings() if all(i in images for i in row["pair"])]
    if not ratings:
        return None
    groups: dict[tuple[str, str], list[Row]] = {}
    for rating in ratings:
        arms = sorted((images[i]["arm"] for i in rating["pair"]), key=lambda arm: (arm != against, arm))
        groups.setdefault((arms[0], arms[1]), []).append(rating)
    rows = [_compared(base, arm, own, images) for (base, arm), own in groups.items()]
    words = [(r["rater"], str(r["pair"]), _word(r, *pair)) for pair, own in groups.items() for r in own]
    for name, target in (("preference", "p"), ("change", "change_p")):
        given = {i: getattr(row, name).p for i, row in enumerate(rows) if getattr(row, name)}
        for i, p in holm(given).items():
            setattr(rows[i], target, p)
    # A picture of the arm compared with is seen in several pairs: a rater's last word on it stands.
    seen: dict[tuple[str, int, str], bool] = {}
    for rating in ratings:
        for image in rating["pair"]:
            ticked = rating["ticks"].get(images[image]["arm"])
            for entity in images[image]["entities"] if ticked is not None else ():
                seen[rating["rater"], image, entity] = entity in ticked
    return People(
        len({rating["rater"] for rating in ratings}),
        len(ratings),
        rows,
        agreement(words),
        agreement([(rater, f"{image}/{entity}", str(there)) for (rater, image, entity), there in seen.items()]),
        {
            name: _against_people(store.scores(name), note.threshold, seen, images)
            for name, note in judge_notes(store).items()
            if note.threshold is not None and seen
        },
    )


def _word(rating: Row, base: str, arm: str) -> str:
    """The choice as seen from the arm: "win", "loss", "both" or "neither"."""
    choice = str(rating["choice"])
    return {base: "loss", arm: "win"}.get(choice, choice)


def _compared(base: str, arm: str, ratings: Sequence[Row], images: Mapping[int, Row]) -> Compared:
    prompts: list[str] = [images[rating["pair"][0]]["prompt_id"] for rating in ratings]
    found = Compared(
        arm,
        base,
        len({rating["rater"] for rating in ratings}),
        preference([_word(rating, base, arm) for rating in ratings], prompts),
        agreement([(r["rater"], str(r["pair"]), r["choice"]) for r in ratings]),
    )
    ticked = [(r, p) for r, p in zip(ratings, prompts) if {base, arm} <= set(r["ticks"])]
    if ticked:
        lacking = {
            name: [float(len(r["ticks"][name]) < len(images[r["pair"][0]]["entities"])) for r, _ in ticked]
            for name in (base, arm)
        }
        own = [prompt for _, prompt in ticked]
        found.before, found.after = mean(lacking[base], own), mean(lacking[arm], own)
        found.change = change(lacking[base], lacking[arm], own)
    return found


def _against_people(
    scores: Scores, border: float, seen: Mapping[tuple[str, int, str], bool], images: Mapping[int, Row]
) -> tuple[Estimate | None, Estimate | None]:
    """Precision and recall; None where nothing is (called) missing."""
    precise: list[tuple[float, str]] = []
    recalled: list[tuple[float, str]] = []
    for (_, image, entity), there in seen.items():
        score = scores.get(image, {}).get(entity)
        if score is None:
            continue
        called, gone, prompt = score < border, not there, images[image]["prompt_id"]
        if called:
            precise.append((float(gone), prompt))
        if gone:
            recalled.append((float(called), prompt))
    first, second = (mean([v for v, _ in own], [p for _, p in own]) if own else None for own in (precise, recalled))
    return first, second


def calibration(path: Path) -> dict[str, dict[str, Any]]:
    """Judge -> what `evaluate calibrate` found, its estimates as such; {} where it was not run."""
    if not path.exists():
        return {}
    return {name: _estimates(own) for name, own in json.loads(path.read_text(encoding="utf-8")).items()}


def _estimates(own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: Estimate(**value) if isinstance(value, dict) and "low" in value else value for key, value in own.items()
    }
