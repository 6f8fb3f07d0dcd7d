"""``python -m tests.prompt.score [-v] [-t]``: how well the labelled prompts' entities are suggested, and how fast.

``-v``: with the tuning lines that are wrong; ``-t``: without the held-out figures, for whoever tunes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib_decouple.prompt.entities import suggest
from lib_decouple.prompt.relations import choose

SETS = ("entities.jsonl", *(f"entities_{k}.jsonl" for k in range(2, 9)))
"""What they are, and what is labelled, is in ``README.md``."""


@dataclass(frozen=True)
class Case:
    """A labelled prompt."""

    prompt: str
    entities: tuple[str, ...]
    style: str
    manner: str
    split: str


@dataclass(frozen=True)
class Score:
    """Counts of entities over some prompts."""

    right: int
    suggested: int
    labelled: int

    @property
    def precision(self) -> float:
        return self.right / self.suggested if self.suggested else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.labelled if self.labelled else 1.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.suggested + self.labelled) if self.labelled else 1.0


def load(name: str = SETS[0]) -> list[Case]:
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines()
    return [Case(**{**row, "entities": tuple(row["entities"])}) for row in map(json.loads, lines)]


def score(cases: Iterable[Case]) -> Score:
    """An entity is right when its text is the label's, whatever the case of its letters."""
    right = suggested = labelled = 0
    for case in cases:
        found, truth = set(suggest(case.prompt)), {entity.lower() for entity in case.entities}
        right += len(found & truth)
        suggested += len(found)
        labelled += len(truth)
    return Score(right, suggested, labelled)


@dataclass(frozen=True)
class Related:
    """A prompt with the things that are kept apart, and those that are left out, each with why."""

    prompt: str
    apart: tuple[str, ...]
    left_out: dict[str, str]
    manner: str
    split: str


def load_relations() -> list[Related]:
    lines = Path(__file__).with_name("relations.jsonl").read_text("utf-8").splitlines()
    return [Related(**{**row, "apart": tuple(row["apart"])}) for row in map(json.loads, lines)]


def score_relations(cases: Iterable[Related]) -> tuple[Score, Score]:
    """Of what is kept apart, and of what is left out."""
    counts = [[0, 0, 0], [0, 0, 0]]
    for case in cases:
        choice = choose(case.prompt)
        found = {one.text for one in choice.apart}, {one.entity.text for one in choice.left_out}
        for own, there, truth in zip(counts, found, (set(case.apart), set(case.left_out))):
            own[:] = own[0] + len(there & truth), own[1] + len(there), own[2] + len(truth)
    return Score(*counts[0]), Score(*counts[1])


def main() -> None:
    for name in SETS:
        cases = load(name)
        print(name)
        for split in ("tuning",) if "-t" in sys.argv else ("tuning", "held-out"):
            for style in ("prose", "tags", "all"):
                chosen = [case for case in cases if case.split == split and style in (case.style, "all")]
                result = score(chosen)
                print(
                    f"{split:9} {style:6} {len(chosen):4} prompts {result.labelled:4} entities  "
                    f"precision {result.precision:.3f}  recall {result.recall:.3f}  F1 {result.f1:.3f}"
                )
        if "-v" in sys.argv:
            _tell_wrong(cases)
    relations = load_relations()
    print("relations.jsonl")
    for split in ("tuning",) if "-t" in sys.argv else ("tuning", "held-out"):
        for name, result in zip(("apart", "left out"), score_relations(c for c in relations if c.split == split)):
            print(
                f"{split:9} {name:9} {result.labelled:4} things  precision {result.precision:.3f}"
                f"  recall {result.recall:.3f}  F1 {result.f1:.3f}"
            )
    if "-v" in sys.argv:
        for case in (case for case in relations if case.split == "tuning"):
            choice = choose(case.prompt)
            apart, out = [one.text for one in choice.apart], {one.entity.text: one.why() for one in choice.left_out}
            if set(apart) != set(case.apart) or set(out) != set(case.left_out):
                print(f"{case.prompt}\n   {apart} | {out}\n   {list(case.apart)} | {case.left_out}")
    _tell_time()


def _tell_time() -> None:
    """Of 200 words, and of 10,000 characters as the chips ask for them, without the tokenizer: CPU time of the first
    time in a process that has the lexicon, the least of ten with a word more each, and of ten again."""
    code = (
        "import re, sys, time; from lib_decouple.webui import tokens\n"
        "from lib_decouple.prompt import align, entities, lexicon\n"
        "def tokenize(text):\n"
        "    words = re.finditer(r'[^\\W\\d_]+|\\d|[^\\w\\s]+|_+', text)\n"
        "    return [align.Piece(k, word[0].lower() + '</w>') for k, word in enumerate(words)]\n"
        "pieces = {}\n"
        "def spent(do, *given):\n"
        "    start = time.process_time(); do(*given); return 1000 * (time.process_time() - start)\n"
        "print(spent(lexicon.load))\n"
        "for do, text in ((entities.suggest, sys.argv[1]),\n"
        "                 (lambda text: tokens.describe(text, lambda _: pieces[text]), sys.argv[2])):\n"
        "    typed = [text, *(text[:len(text) // 2] + ' cat' * k + text[len(text) // 2:] for k in range(1, 11))]\n"
        "    pieces = {one: tokenize(one) for one in typed}\n"
        "    first, *more = (spent(do, one) for one in typed)\n"
        "    print(first, min(more), min(spent(do, typed[-1]) for _ in range(10)))"
    )
    prompts = [case.prompt for name in SETS for case in load(name) if case.style == "prose" and case.manner != "syntax"]
    given = " ".join(" ".join(prompts).split()[-200:]), ". ".join(prompts)[:10_000]
    told = subprocess.run([sys.executable, "-c", code, *given], check=True, capture_output=True, text=True)
    load_ms, *each = map(float, told.stdout.split())
    print(f"reading the lexicon {load_ms:.1f} ms")
    for name, own in (("200 words", each[:3]), ("10,000 characters with their tokens, without tokenizing", each[3:])):
        print(f"{name}: {own[0]:.1f} ms at first, {own[1]:.1f} with a word more, {own[2]:.1f} ms again")


def _tell_wrong(cases: Iterable[Case]) -> None:
    for case in cases:
        found, truth = suggest(case.prompt), [entity.lower() for entity in case.entities]
        extra, lost = [e for e in found if e not in truth], [e for e in truth if e not in found]
        # The held-out half stays unseen, so that nobody tunes on it.
        if case.split == "tuning" and (extra or lost):
            print(f"{case.prompt}\n   extra {extra}  lost {lost}")


if __name__ == "__main__":
    main()
