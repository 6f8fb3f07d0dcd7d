"""``python -m tests.prompt.public FOLDER [-v] [-t]``: how well the entities of other people's prompts are suggested.

``public.jsonl`` and ``public_2.jsonl`` have the labels alone, each with its prompt's SHA-256. The prompts are public,
but not ours to hand on: FOLDER holds them as their owners publish them, at any depth. ``README.md`` says where, and how
they were chosen.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib_decouple.prompt.entities import suggest

from .score import Score

SETS = ("public.jsonl", "public_2.jsonl")


@dataclass(frozen=True)
class Label:
    """What a prompt names, by the rules of ``README.md``."""

    sha256: str
    source: str
    entities: tuple[str, ...]
    optional: tuple[str, ...]
    """What may be found or not: names and trigger words that only somebody knows who knows them."""
    split: str


def labels(name: str = SETS[0]) -> list[Label]:
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Label(**{**row, **{key: tuple(row[key]) for key in ("entities", "optional")}}) for row in rows]


def prompts(folder: Path) -> Iterator[str]:
    """All prompts in ``folder``, in the forms in which the sources have them; a text is one, and so is each line."""
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".tsv":
            yield from (line.partition("\t")[0] for line in file.read_text("utf-8").splitlines())
        elif file.suffix == ".json":
            yield from (row["caption"] for row in json.loads(file.read_text("utf-8")))
        elif file.suffix == ".md":
            cells = re.finditer("<b>Prompt:</b>(.*?)</td>", file.read_text("utf-8"), re.S)
            yield from (html.unescape(cell[1]) for cell in cells)
        elif file.suffix == ".txt":
            text = file.read_text("utf-8")
            yield from (text, *text.splitlines())


def score(found: dict[str, str], chosen: list[Label]) -> Score:
    right = suggested = labelled = 0
    for label in chosen:
        own, truth = set(suggest(found[label.sha256])) - set(label.optional), set(label.entities)
        right += len(own & truth)
        suggested += len(own)
        labelled += len(truth)
    return Score(right, suggested, labelled)


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit(__doc__)
    found = {hashlib.sha256(one.strip().encode()).hexdigest(): one.strip() for one in prompts(Path(sys.argv[1]))}
    for name in SETS:
        _tell(name, found)


def _tell(name: str, found: dict[str, str]) -> None:
    there = [label for label in labels(name) if label.sha256 in found]
    print(f"{name}: {len(there)} of {len(labels(name))} prompts are in {sys.argv[1]}")
    for split in ("tuning", "held-out")[: 1 if "-t" in sys.argv else 2]:
        for source in (*dict.fromkeys(label.source for label in there), "all"):
            result = score(found, [one for one in there if one.split == split and source in (one.source, "all")])
            print(
                f"{split:9} {source:10} {result.labelled:4} entities  precision {result.precision:.3f}"
                f"  recall {result.recall:.3f}  F1 {result.f1:.3f}"
            )
    for label in there if "-v" in sys.argv else ():
        own = suggest(found[label.sha256])
        extra = [one for one in own if one not in label.entities + label.optional]
        lost = [one for one in label.entities if one not in own]
        # The held-out half stays unseen, so that nobody tunes on it.
        if label.split == "tuning" and (extra or lost):
            print(f"{found[label.sha256]}\n   extra {extra}  lost {lost}")


if __name__ == "__main__":
    main()
