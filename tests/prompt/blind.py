"""``python -m tests.prompt.blind FOLDER``: how far two who knew the rules of labelling alone agree with the labels.

``blind.jsonl`` has what two labellers, each alone, made of the held-out halves of ``public_2.jsonl``,
``entities_7.jsonl`` and ``entities_8.jsonl``; they saw neither the labels nor the program. FOLDER: as of
``tests.prompt.public``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lib_decouple.prompt.entities import suggest

from . import public
from .score import Score, load

OWN = ("entities_7.jsonl", "entities_8.jsonl")
PUBLIC = "public_2.jsonl"


@dataclass(frozen=True)
class Named:
    """What somebody says that a prompt names."""

    entities: frozenset[str]
    optional: frozenset[str] = frozenset()
    """What may be named or not."""


def named(entities: Iterable[str], optional: Iterable[str] = ()) -> Named:
    """Tags' underscores and backslashes are no difference, nor are capitals."""

    def plain(texts: Iterable[str]) -> frozenset[str]:
        return frozenset(one.lower().replace("\\", "").replace("_", " ") for one in texts)

    return Named(plain(entities), plain(optional))


def agreement(pairs: Sequence[tuple[Named, Named]]) -> Score:
    """Of two who name things of the same prompts; what either leaves open counts neither for nor against."""
    left = [one.entities - other.optional for one, other in pairs]
    right = [other.entities - one.optional for one, other in pairs]
    return Score(
        sum(len(one & other) for one, other in zip(left, right)),
        sum(map(len, left)),
        sum(map(len, right)),
    )


def blind() -> dict[str, dict[str, Named]]:
    """A prompt's SHA-256 -> labeller -> what they named."""
    rows: dict[str, dict[str, Named]] = {}
    for line in Path(__file__).with_name("blind.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(row["sha256"], {})[row["labeller"]] = named(row["entities"], row["optional"])
    return rows


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit(__doc__)
    texts = {hashlib.sha256(one.strip().encode()).hexdigest(): one.strip() for one in public.prompts(Path(sys.argv[1]))}
    labels = {one.sha256: named(one.entities, one.optional) for one in public.labels(PUBLIC) if one.sha256 in texts}
    for case in (case for name in OWN for case in load(name)):
        key = hashlib.sha256(case.prompt.encode()).hexdigest()
        texts[key], labels[key] = case.prompt, named(case.entities)
    by_whom = {key: {"labels": labels[key], **both} for key, both in blind().items() if key in labels}
    print(f"{len(by_whom)} of {len(blind())} prompts are there")
    for key, all_of_it in by_whom.items():
        all_of_it["program"] = named(suggest(texts[key]))
    for one, other in combinations(("labels", "a", "b", "program"), 2):
        result = agreement([(each[one], each[other]) for each in by_whom.values()])
        print(f"{one:7} and {other:8} F1 {result.f1:.3f} of {result.suggested} and {result.labelled} things")


if __name__ == "__main__":
    main()
