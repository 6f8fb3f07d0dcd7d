"""Prompts to draw: sets that come with the program, as data with their source, and a user's files."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ....prompt.entities import suggest
from ...model.scenes import joined
from ...model.sprites import THINGS
from ..files import read_text
from .splits import cases, sets_of

HERE = Path(__file__).resolve().parent
SUFFIXES = (".txt", ".csv", ".jsonl")
"""Of a user's files."""


@dataclass(frozen=True)
class Prompt:
    """One prompt and the entities that it has to show, in the prompt's order."""

    text: str
    entities: tuple[str, ...]
    origin: str
    """The set's or the file's name."""

    @property
    def id(self) -> str:
        """Readable, a file name everywhere, and one for each text with its entities."""
        digest = hashlib.sha256(json.dumps([self.text, self.entities]).encode()).hexdigest()
        return f"{re.sub('[^a-z0-9]+', '-', self.text.lower()).strip('-')[:40].strip('-')}-{digest[:8]}"


def _data(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def _attend_excite(part: str) -> list[tuple[str, tuple[str, ...]]]:
    data = _data("attend-excite")
    things = {*data["animals"], *data["objects"]}
    return [(text, tuple(word for word in text.split() if word in things)) for text in data[part]]


def _tiam(part: str) -> list[tuple[str, tuple[str, ...]]]:
    data = _data("tiam")[part]
    chosen = itertools.permutations(data["objects"], data["template"].count("{}"))
    return [(data["template"].format(*map(_with_article, own)), own) for own in chosen]


def _tiam_drawn(count: int) -> list[tuple[str, tuple[str, ...]]]:
    """TIAM's classes that the embedded model draws, ten; three and four of the first five, in words that it knows."""
    own = [thing for thing in _data("tiam")["tiam-2"]["objects"] if thing in THINGS]
    chosen = itertools.permutations(own if count == 2 else own[:5], count)
    return [("a photo of " + " and ".join(map(_with_article, names)), names) for names in chosen]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def every_order(split: str, count: int) -> list[tuple[str, tuple[str, ...]]]:
    """Of the sets of a split every order, as the embedded model's captions name them, with its entities. Raises
    ValueError by name."""
    own = [order for group in sets_of(split, count) for order in itertools.permutations(sorted(group))]
    return [(joined(names), names) for names in own]


SETS: dict[str, tuple[str, Callable[[], list[tuple[str, tuple[str, ...]]]]]] = {
    "animal-animal": ("Attend-and-Excite: every pair of 12 animals", partial(_attend_excite, "animal-animal")),
    "animal-object": ("Attend-and-Excite: each animal with each object", partial(_attend_excite, "animal-object")),
    "object-object": ("Attend-and-Excite: every pair of objects, coloured", partial(_attend_excite, "object-object")),
    "tiam-2": ("TIAM's template of two, every order of 24 COCO classes", partial(_tiam, "tiam-2")),
    "tiam-3": ("TIAM's template of three, every order of 5 classes", partial(_tiam, "tiam-3")),
    "tiam-4": ("TIAM's template of four, every order of 5 classes", partial(_tiam, "tiam-4")),
    "tiam-drawn-2": ("TIAM's, those of its classes that the embedded model draws", partial(_tiam_drawn, 2)),
    "tiam-drawn-3": ("every order of three of five such classes, joined by and", partial(_tiam_drawn, 3)),
    "tiam-drawn-4": ("every order of four of five such classes, joined by and", partial(_tiam_drawn, 4)),
    "embedded-2": ("the embedded model's pairs that tuning never saw", partial(every_order, "report", 2)),
    "embedded-3": ("the embedded model's triples that tuning never saw", partial(every_order, "report", 3)),
    "embedded-unseen-2": ("pairs that its training never drew together", partial(every_order, "unseen", 2)),
}  # fmt: skip
"""Name -> what it holds, and the function that gives its prompts with their entities."""


def built_in(name: str) -> list[Prompt]:
    """A set of :data:`SETS`. Raises ValueError for another name."""
    if name not in SETS:
        raise ValueError(f"set: {name!r} is not one of {', '.join(SETS)}")
    return [Prompt(text, entities, name) for text, entities in SETS[name][1]()]


def of_split(split: str, count: int, size: int, first_seed: int | None = None) -> list[tuple[Prompt, int]]:
    """``size`` pictures of a split, prompts with their seeds, as :func:`cases` has them. Raises ValueError by name."""
    found = cases(split, count, size, first_seed)
    return [(Prompt(joined(case.entities), case.entities, f"{split}-{count}"), case.seed) for case in found]


def from_file(path: Path) -> list[Prompt]:
    """A user's prompts; entities that are not given are found (``prompt.entities.suggest``).

    ``.txt``: a prompt a line, behind it, after a tab or " | ", its entities by comma; empty lines and those that
    begin with ``#`` are passed over. ``.csv``: columns ``prompt`` and, if wanted, ``entities`` (by comma).
    ``.jsonl``: ``{"prompt": ..., "entities": [...]}`` a line. Raises ValueError by file and line, FileNotFoundError.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"file: {path} is not allowed; one of {', '.join('*' + suffix for suffix in SUFFIXES)}")
    text = read_text("file", path)
    read = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl}[path.suffix.lower()]
    found = []
    for line, prompt, entities in read(path, text):
        where = f"{path}, line {line}"
        if not prompt:
            raise ValueError(f"{where}: no prompt")
        if entities is None:
            entities = suggest(prompt)
            if not entities:
                raise ValueError(f"{where}: no entity is found in {prompt!r}; name them")
        if not entities or not all(entities):
            raise ValueError(f"{where}: entities: {entities!r} is not allowed; at least one, none empty")
        found.append(Prompt(prompt, tuple(entities), path.name))
    if not found:
        raise ValueError(f"file: {path} holds no prompt")
    return found


_Line = tuple[int, str, "list[str] | None"]


def _named(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _txt(path: Path, text: str) -> list[_Line]:
    found: list[_Line] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        # " | " only with its spaces: a WebUI's [cat|dog] is part of the prompt.
        mark = "\t" if "\t" in line else " | "
        prompt, _, entities = line.rpartition(mark) if mark in line else (line, "", None)
        found.append((number, prompt.strip(), None if entities is None else _named(entities)))
    return found


def _csv(path: Path, text: str) -> list[_Line]:
    reader = csv.DictReader(io.StringIO(text))
    names = reader.fieldnames or []
    if "prompt" not in names:
        raise ValueError(f"{path}: no column prompt; its columns are {', '.join(names) or 'none'}")
    if unknown := sorted(set(names) - {"prompt", "entities"}):
        raise ValueError(f"{path}: column {unknown[0]!r} is not allowed; prompt, entities")
    found: list[_Line] = []
    for row in reader:
        if None in row:
            raise ValueError(f"{path}, line {reader.line_num}: more values than columns; quote a text with commas")
        own = (row.get("entities") or "").strip()
        found.append((reader.line_num, (row["prompt"] or "").strip(), _named(own) if own else None))
    return found


def _jsonl(path: Path, text: str) -> list[_Line]:
    found: list[_Line] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f'{where}: {{"prompt": "…", "entities": ["…"]}} is needed')
        if unknown := sorted(set(row) - {"prompt", "entities"}):
            raise ValueError(f"{where}: {unknown[0]!r} is not allowed; prompt, entities")
        entities = row.get("entities")
        if entities is not None and not (isinstance(entities, list) and all(isinstance(e, str) for e in entities)):
            raise ValueError(f"{where}: entities: {entities!r} is not allowed; a list of words")
        found.append((number, row["prompt"].strip(), None if entities is None else [e.strip() for e in entities]))
    return found


def drawn_from(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """``limit`` of them by a fixed lot, in their order; all for 0. Raises ValueError for more than there are."""
    if limit > len(prompts):
        raise ValueError(f"limit: {limit} is not allowed; {prompts[0].origin} has {len(prompts)} prompts")
    if not limit:
        return list(prompts)
    return [prompts[k] for k in sorted(random.Random(0).sample(range(len(prompts)), limit))]
