"""The SQLite file beside a run's images: one row an image, a score, a rating. A stop at any moment loses nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

NAME = "evaluate.sqlite"
"""Of the file in a run's folder."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS images(
    id INTEGER PRIMARY KEY, prompt_id TEXT, prompt TEXT, entities TEXT, count INT, arm TEXT, seed INT, file TEXT,
    status TEXT, settings TEXT, sampling TEXT, tokens TEXT, host TEXT, version TEXT, endpoint TEXT, checkpoint TEXT,
    seconds REAL, passes INT, trace TEXT, stood_aside TEXT, recipe TEXT, prompt_set TEXT, created TEXT,
    UNIQUE(prompt_id, arm, seed));
CREATE TABLE IF NOT EXISTS plans(id INTEGER PRIMARY KEY, text TEXT, created TEXT);
CREATE TABLE IF NOT EXISTS scores(
    image_id INT, judge TEXT, key TEXT, value REAL, PRIMARY KEY(image_id, judge, key));
CREATE TABLE IF NOT EXISTS captions(image_id INTEGER PRIMARY KEY, text TEXT);
CREATE TABLE IF NOT EXISTS ratings(
    id INTEGER PRIMARY KEY, pair TEXT, rater TEXT, choice TEXT, ticks TEXT, created TEXT, UNIQUE(pair, rater));
CREATE TABLE IF NOT EXISTS notes(key TEXT PRIMARY KEY, value TEXT);
"""
_JSON = ("entities", "settings", "sampling", "tokens", "trace")
COLUMNS = (
    "prompt_id", "prompt", "entities", "count", "arm", "seed", "file", "status", "settings", "sampling", "tokens",
    "host", "version", "endpoint", "checkpoint", "seconds", "passes", "trace", "stood_aside", "recipe", "prompt_set",
    "created",
)  # fmt: skip
"""Of an image, besides its id.

``status``: "done", or "aside" for one that the plan no longer has or is to have otherwise. ``checkpoint``:
the first ten digits of its SHA-256. ``passes`` (guided ones) and ``trace`` are None where a host does not tell.
``stood_aside``: why guidance did, "" when it did not. ``recipe``: a digest of what the picture is asked with, not of
rounding (batch, machine).
"""

IMPORTED = "imported"
"""``recipe`` and ``host`` of an image that another tool drew (:mod:`.imports`)."""

VERSION = 1
"""Of the file's tables."""

Row = dict[str, Any]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Store:
    """One run. ``path`` is the run's folder or the SQLite file itself.

    Raises FileNotFoundError where there is none, unless ``create``; ValueError for one of another version.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self.path = path / NAME if path.is_dir() or (create and not path.suffix) else path
        if not create and not self.path.is_file():
            raise FileNotFoundError(f"run: no {NAME} at {path}; `evaluate run` makes one")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as open_file:
            if open_file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                found = open_file.execute("PRAGMA user_version").fetchone()[0]
                if found != VERSION:
                    raise ValueError(f"run: {self.path} is of version {found}; this program reads {VERSION}")
            else:
                open_file.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    @property
    def folder(self) -> Path:
        """That the images' paths are relative to."""
        return self.path.parent

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
            connection.row_factory = sqlite3.Row
            yield connection

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Row]:
        with self._open() as open_file:
            return [dict(row) for row in open_file.execute(query, tuple(values))]

    def put_image(self, row: Mapping[str, Any]) -> int:
        """Add an image or replace the one of the same prompt, arm and seed; gives its id.

        What was said of another file in its place (scores, caption, ratings) goes with that file.
        Raises ValueError by name.
        """
        if unknown := set(row) - set(COLUMNS):
            raise ValueError(f"{min(unknown)}: no such column of an image; one of {', '.join(COLUMNS)}")
        own = {"status": "done", "created": _now(), **row}
        own |= {name: json.dumps(own[name]) for name in _JSON if name in own}
        names = ", ".join(own)
        changes = ", ".join(f"{name} = excluded.{name}" for name in own)
        with self._open() as open_file:
            before = open_file.execute(
                "SELECT id FROM images WHERE prompt_id = ? AND arm = ? AND seed = ? AND file IS NOT ?",
                [own.get(name) for name in ("prompt_id", "arm", "seed", "file")],
            ).fetchone()
            if before:
                for table in ("scores", "captions"):
                    open_file.execute(f"DELETE FROM {table} WHERE image_id = ?", [before["id"]])
                open_file.execute(
                    "DELETE FROM ratings WHERE EXISTS (SELECT 1 FROM json_each(pair) WHERE value = ?)", [before["id"]]
                )
            found = open_file.execute(
                f"INSERT INTO images({names}) VALUES({', '.join('?' * len(own))}) "
                f"ON CONFLICT(prompt_id, arm, seed) DO UPDATE SET {changes} RETURNING id",
                tuple(own.values()),
            )
            return int(found.fetchone()[0])

    def images(self, status: str = "done") -> list[Row]:
        """Rows of that status in the order drawn; lists and mappings as such."""
        rows = self._rows("SELECT * FROM images WHERE status = ? ORDER BY id", [status])
        return [{**row, **{n: json.loads(row[n]) if row[n] else None for n in _JSON}} for row in rows]

    def file_of(self, prompt_id: str, arm: str, seed: int) -> str | None:
        """The file of an image, None where there is no row of it."""
        query = "SELECT file FROM images WHERE prompt_id = ? AND arm = ? AND seed = ?"
        found = self._rows(query, [prompt_id, arm, seed])
        return str(found[0]["file"]) if found else None

    def set_status(self, images: Iterable[int], status: str) -> None:
        """Of images by id."""
        with self._open() as open_file:
            open_file.executemany("UPDATE images SET status = ? WHERE id = ?", [(status, one) for one in images])

    def put_plan(self, text: str) -> None:
        """Keep a plan's text, unless it is the latest already."""
        with self._open() as open_file:
            latest = open_file.execute("SELECT text FROM plans ORDER BY id DESC LIMIT 1").fetchone()
            if latest is None or latest["text"] != text:
                open_file.execute("INSERT INTO plans(text, created) VALUES(?, ?)", [text, _now()])

    def plans(self) -> list[Row]:
        """``text`` and ``created`` of the plans that this run has had, the latest last."""
        return self._rows("SELECT text, created FROM plans ORDER BY id")

    def put_scores(self, judge: str, scores: Mapping[int, Mapping[str, float]]) -> None:
        """Image id -> key ("" for the whole image, else the entity) -> value, all or none of them."""
        rows = [(image, judge, key, float(value)) for image, own in scores.items() for key, value in own.items()]
        with self._open() as open_file:
            open_file.executemany("INSERT OR REPLACE INTO scores VALUES(?, ?, ?, ?)", rows)

    def drop_scores(self, judge: str) -> int:
        """Forget what a judge said; gives of how many images."""
        dropped = len(self.scores(judge))
        with self._open() as open_file:
            open_file.execute("DELETE FROM scores WHERE judge = ?", [judge])
        return dropped

    def put_score(self, image_id: int, judge: str, key: str, value: float) -> None:
        """One value."""
        self.put_scores(judge, {image_id: {key: value}})

    def scores(self, judge: str) -> dict[int, dict[str, float]]:
        """Image id -> key -> value."""
        found: dict[int, dict[str, float]] = {}
        for row in self._rows("SELECT * FROM scores WHERE judge = ?", [judge]):
            found.setdefault(row["image_id"], {})[row["key"]] = row["value"]
        return found

    def judges(self) -> list[str]:
        """Whose scores there are."""
        return [row["judge"] for row in self._rows("SELECT DISTINCT judge FROM scores ORDER BY judge")]

    def put_captions(self, captions: Mapping[int, str]) -> None:
        """Image id -> what a captioning judge wrote."""
        with self._open() as open_file:
            open_file.executemany("INSERT OR REPLACE INTO captions VALUES(?, ?)", list(captions.items()))

    def captions(self) -> dict[int, str]:
        """Image id -> caption."""
        return {row["image_id"]: row["text"] for row in self._rows("SELECT * FROM captions")}

    def put_rating(self, pair: tuple[int, int], rater: str, choice: str, ticks: Mapping[str, list[str]]) -> None:
        """A rater's word on a pair of image ids: an arm's name, "both" or "neither"; a second one replaces the first.

        ``ticks`` is arm -> the entities that the rater saw.
        """
        row = (json.dumps(sorted(pair)), rater, choice, json.dumps(ticks), _now())
        with self._open() as open_file:
            open_file.execute(
                "INSERT OR REPLACE INTO ratings(pair, rater, choice, ticks, created) VALUES(?, ?, ?, ?, ?)", row
            )

    def ratings(self) -> list[Row]:
        """``pair`` as a list of two image ids, ``ticks`` as a mapping."""
        rows = self._rows("SELECT * FROM ratings ORDER BY id")
        return [{**row, "pair": json.loads(row["pair"]), "ticks": json.loads(row["ticks"])} for row in rows]

    def remove_rating(self, pair: tuple[int, int], rater: str) -> bool:
        """Take a rater's word on a pair back; False where there was none."""
        with self._open() as open_file:
            found = open_file.execute(
                "DELETE FROM ratings WHERE pair = ? AND rater = ?", (json.dumps(sorted(pair)), rater)
            )
            return found.rowcount > 0

    def base_arm(self) -> str:
        """The arm that others are compared with: the plan's first; "plain" where no plan is known."""
        arms = (self.notes().get("plan") or {}).get("arms")
        return str(arms[0]["name"]) if arms else "plain"

    def put_note(self, key: str, value: Any) -> None:
        """What the report says of the run as a whole (JSON): "judge:NAME", "plan", "commands", "environment",
        "imports" (the commands that did)."""
        with self._open() as open_file:
            open_file.execute("INSERT OR REPLACE INTO notes VALUES(?, ?)", (key, json.dumps(value)))

    def notes(self) -> dict[str, Any]:
        """Key -> value."""
        return {row["key"]: json.loads(row["value"]) for row in self._rows("SELECT * FROM notes")}
