"""``evaluate import``: pictures that another tool drew, as arms of a run, judged and reported beside its own.

A table names them: CSV with the columns file (from the table's folder), prompt, seed and arm and, if wanted, passes
(guided ones of the denoiser). Each is paired with the run's picture of that prompt and seed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import shlex
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .backends.base import as_png
from .files import read_text, write_durably
from .plan import NO_ARM
from .run import IMAGES, check_readable, locked
from .store import IMPORTED, Row, Store

NEEDED = ("file", "prompt", "seed", "arm")
ALLOWED = (*NEEDED, "passes")


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("import", help="another tool's pictures as arms of a run", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("table", type=Path, metavar="TABLE.csv", help=f"columns {', '.join(ALLOWED)}")
    parser.add_argument("--redo", action="store_true", help="replace what was imported before, with its scores")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Picture:
    """One line of the table: a file, and the run's row that it is to stand beside."""

    file: Path
    arm: str
    passes: float | None
    beside: Row


def run(arguments: argparse.Namespace) -> int:
    """Import all of the table or nothing."""
    store = Store(arguments.folder)
    with locked(store.folder):
        pictures = read(arguments.table, store)
        check_new(store, pictures, arguments.redo)
        for one in pictures:
            keep(store, one)
        words = ["python", "-m", "lib_decouple", "evaluate", "import", "RUN", arguments.table.name]
        told = store.notes().get("imports") or []
        store.put_note("imports", [*(line for line in told if line != shlex.join(words)), shlex.join(words)])
    drawn = sum(row["arm"] == store.base_arm() for row in store.images())
    for arm, number in Counter(one.arm for one in pictures).items():
        print(f"{arm}: {number} pictures beside {drawn} of {store.base_arm()}")
    return 0


def read(table: Path, store: Store) -> list[Picture]:
    """The table's pictures, none yet imported. Raises ValueError by file, line and field; FileNotFoundError."""
    text = read_text("table", table)
    reader = csv.DictReader(io.StringIO(text))
    try:
        names, lines = list(reader.fieldnames or []), [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise ValueError(f"{table}, after line {reader.line_num}: {error}") from None
    if lacking := [name for name in NEEDED if name not in names]:
        raise ValueError(f"{table}: no column {lacking[0]}; its columns are {', '.join(names) or 'none'}")
    if unknown := [name for name in names if name not in ALLOWED]:
        raise ValueError(f"{table}: column {unknown[0]!r} is not allowed; {', '.join(ALLOWED)}")
    known = _beside(store)
    found: dict[tuple[str, str, int], Picture] = {}
    for number, line in lines:
        where = f"{table}, line {number}"
        if None in line:
            raise ValueError(f"{where}: more values than columns; quote a text with commas")
        one = _picture(where, table.parent, {name: (value or "").strip() for name, value in line.items()}, known)
        key = (one.arm, one.beside["prompt_id"], one.beside["seed"])
        if key in found:
            raise ValueError(f"{where}: {one.arm!r} has this prompt and seed already: {found[key].file}")
        found[key] = one
    if not found:
        raise ValueError(f"{table} holds no picture")
    return list(found.values())


@dataclass(frozen=True)
class _Known:
    """What an imported picture can stand beside."""

    arm: str
    rows: dict[tuple[str, int], list[Row]]
    """Prompt and seed -> rows; several where a prompt was drawn with several choices of entities."""
    size: tuple[int, int]


def _beside(store: Store) -> _Known:
    arm = store.base_arm()
    rows: dict[tuple[str, int], list[Row]] = {}
    for row in store.images():
        if row["arm"] == arm:
            rows.setdefault((row["prompt"], row["seed"]), []).append(row)
    if not rows:
        raise ValueError(f"run: no picture of {arm!r} is in {store.folder}, so there is nothing to compare with")
    first = store.folder / next(iter(rows.values()))[0]["file"]
    check_readable(first)
    with Image.open(first) as image:
        return _Known(arm, rows, image.size)


def _picture(where: str, folder: Path, line: dict[str, str], known: _Known) -> Picture:
    for name in NEEDED:
        if not line[name]:
            raise ValueError(f"{where}: no {name}")
    if line["arm"] in NO_ARM:
        raise ValueError(f"{where}: arm: {line['arm']!r} is not allowed; the rating page needs the word")
    if not line["seed"].isdecimal():
        raise ValueError(f"{where}: seed: {line['seed']!r} is not allowed; a whole number from 0")
    rows = known.rows.get((line["prompt"], int(line["seed"])), [])
    if not rows:
        raise ValueError(
            f"{where}: prompt: {line['prompt']!r} with seed {int(line['seed'])} is none of {known.arm!r} in this run, "
            "so there is nothing to compare it with"
        )
    if len(rows) > 1:
        raise ValueError(f"{where}: prompt: {line['prompt']!r} is in this run with several choices of entities")
    file = folder / line["file"]
    if not file.is_file():
        raise ValueError(f"{where}: file: {file} does not exist")
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: file: {file} cannot be read: {error}") from None
    if image.size != known.size:
        (width, height), (own_width, own_height) = image.size, known.size
        raise ValueError(
            f"{where}: file: {file} has {width}x{height} pixels; the run's pictures have {own_width}x{own_height}"
        )
    return Picture(file, line["arm"], _passes(where, line.get("passes", "")), rows[0])


def _passes(where: str, text: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{where}: passes: {text!r} is not allowed; a number from 0, or nothing")
    return value


def check_new(store: Store, pictures: Sequence[Picture], redo: bool) -> None:
    """Raises ValueError for an arm that the run drew itself, and without ``redo`` for what would be replaced."""
    there = {(row["arm"], row["prompt_id"], row["seed"]): row for s in ("done", "aside") for row in store.images(s)}
    drawn = {row["arm"] for row in there.values() if row["recipe"] != IMPORTED}
    if taken := sorted({one.arm for one in pictures} & drawn):
        raise ValueError(f"arm: {taken[0]!r} is drawn in this run; give the imported one another name")
    changed = 0
    for one in pictures:
        row = there.get((one.arm, one.beside["prompt_id"], one.beside["seed"]))
        changed += row is not None and row["file"] != _place(one, _png(one))
    if changed and not redo:
        raise ValueError(f"table: {changed} pictures were imported before and are others now; --redo replaces them")


def _png(one: Picture) -> bytes:
    with Image.open(one.file) as image:
        return as_png(image)


def _place(one: Picture, data: bytes) -> str:
    """A file of its own for each arm: one that is replaced goes, and may look like another arm's."""
    digest = hashlib.sha256(one.arm.encode() + b"\0" + data).hexdigest()[:16]
    return f"{IMAGES}/{one.beside['prompt_id']}/{one.beside['seed']}-{digest}.png"


def keep(store: Store, one: Picture) -> None:
    """The image, then its row; then, where it replaces another, that one's file goes. Raises ValueError."""
    data = _png(one)
    file, like = _place(one, data), one.beside
    before = store.file_of(like["prompt_id"], one.arm, like["seed"])
    try:
        write_durably(store.folder / file, data)
        store.put_image(
            {
                **{name: like[name] for name in ("prompt_id", "prompt", "prompt_set", "entities", "count", "seed")},
                "arm": one.arm, "file": file, "host": IMPORTED, "passes": one.passes, "recipe": IMPORTED,
                "stood_aside": "",
            }
        )  # fmt: skip
    except (OSError, sqlite3.OperationalError) as error:
        raise ValueError(f"run: {store.folder} cannot be written: {error}. The same command goes on") from error
    if before and before != file:
        (store.folder / before).unlink(missing_ok=True)
