"""``evaluate judge``: let judges score a run's images; what is scored already is not scored again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .judges import KINDS, Missing, Options, named
from .judges.base import DTYPES, Item, Judge, verdicts
from .store import Row, Store

JUDGES_HELP = f"by comma, KIND or KIND:MODEL, a folder or hub name; kinds: {', '.join(KINDS)} (drawn)"


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("judge", help="score a run's images", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--judges", default="drawn", help=JUDGES_HELP)
    parser.add_argument("--batch", type=int, default=16, help="images a pass (16)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the models (float32)")
    parser.set_defaults(run=run)


def items(store: Store, rows: list[Row], captions: dict[int, str]) -> list[Item]:
    """Rows of the store with their images. Raises ValueError for an image that cannot be read."""
    found = []
    for row in rows:
        try:
            with Image.open(store.folder / row["file"]) as image:
                image.load()
                found.append(Item(image.copy(), row["prompt"], tuple(row["entities"]), captions.get(row["id"])))
        except OSError as error:
            raise ValueError(f"image {row['id']}: {row['file']} cannot be read: {error}") from None
    return found


def judge_all(store: Store, judge: Judge, batch: int) -> int:
    """Score what has no score of this judge yet, as it is now; gives how many images that was.

    Scores by a judge of this name with another threshold, or, of the one that ships, other weights, are dropped first.

    Raises :class:`Missing` where the judge fails or gives no number, and ValueError for an image that cannot be read or
    captions by another model.
    """
    name = judge.name
    if judge.kind == "caption" and (author := store.notes().get("captions", name)) != name:
        raise ValueError(f"judges: this run's captions are by {author}; a run has one captioning model")
    note = {"source": judge.source, "threshold": judge.threshold}
    before = store.notes().get(f"judge:{name}", note)
    if any(before.get(key) != value for key, value in note.items()) and (dropped := store.drop_scores(name)):
        print(f"{name}: scores of {dropped} images by another one ({describe(before)}) are made anew", file=sys.stderr)
    store.put_note(f"judge:{name}", note)
    scored = store.scores(name)
    left = [row for row in store.images() if row["id"] not in scored]
    for start in tqdm(range(0, len(left), batch), desc=name, disable=not left):
        rows = left[start : start + batch]
        own = items(store, rows, store.captions() if judge.kind == "clip-text" else {})
        captioned, scores = verdicts(judge, own)
        if judge.kind == "caption":
            store.put_note("captions", name)
            store.put_captions({row["id"]: item.caption or "" for row, item in zip(rows, captioned)})
        store.put_scores(name, {row["id"]: values for row, values in zip(rows, scores)})
    return len(left)


def describe(note: dict[str, Any]) -> str:
    """Which judge a note of the store names."""
    return ", ".join(f"{key} {value}" for key, value in note.items() if value not in ("", None))


def run(arguments: argparse.Namespace) -> int:
    """Score; 1 when a judge could not be had, with the others' scores written."""
    if arguments.batch < 1:
        raise ValueError(f"batch: {arguments.batch} is not allowed; at least 1")
    store = Store(arguments.folder)
    judges, lacking = named(arguments.judges, Options(arguments.device, arguments.dtype))
    for judge in judges:
        try:
            print(f"{judge.name}: {judge_all(store, judge, arguments.batch)} images scored")
        except Missing as error:
            lacking.append(f"{judge.name}: {error}")
    for reason in lacking:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if lacking else 0
