"""``evaluate table``: a run's manifest with every judge's scores as one CSV file, a row an image."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

from .files import write_whole
from .store import COLUMNS, Store

FILE = "manifest.csv"
SHORT = tuple(name for name in COLUMNS if name not in ("settings", "sampling", "tokens", "trace", "recipe", "status"))
"""Columns that stay with ``--short``: what an arm or the whole run has in common is in the plan."""


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("table", help="manifest and scores as CSV", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--out", type=Path, help=f"the file; {FILE} in the run's folder when left out")
    parser.add_argument("--short", action="store_true", help="without settings, sampling, tokens and traces")
    parser.set_defaults(run=run)


def table(store: Store, short: bool) -> str:
    """CSV; lists and mappings as JSON. A judge's column holds its scores: entity (or "", the whole) -> score."""
    names = SHORT if short else COLUMNS
    scores = {judge: store.scores(judge) for judge in store.judges()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *scores])
    for row in store.images():
        row["seconds"] = None if row["seconds"] is None else round(row["seconds"], 3)
        cells = [json.dumps(v) if isinstance(v, (list, dict)) else v for v in (row[name] for name in names)]
        own = [judged.get(row["id"]) for judged in scores.values()]
        writer.writerow([*cells, *("" if one is None else json.dumps(one) for one in own)])
    return text.getvalue()


def run(arguments: argparse.Namespace) -> int:
    """Write the file."""
    store = Store(arguments.folder)
    path = arguments.out or store.folder / FILE
    write_whole(path, table(store, arguments.short))
    print(path)
    return 0
