"""A user's texts read, and results written so that an interrupt leaves either the whole file or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART = ".part"
"""Ends the name of a file that :func:`write_durably` is writing."""


@contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes ``target`` when the body ends well, and vanishes otherwise.

    Raises FileExistsError when ``target`` is there and ``overwrite`` is off.
    """
    if target.exists() and not overwrite:
        raise FileExistsError(f"out: {target} exists; give another --out, or --overwrite to replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            os.replace(target, old / "old")
            os.replace(scratch, target)
            shutil.rmtree(old)
        else:
            os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a text file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file in one move, and not before its content is on the disk. Raises OSError with nothing changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}{PART}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder can't be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def reopened(log: Path) -> list[dict[str, Any]]:
    """Records of a log of JSON lines, ready to be appended to: a last line that an interrupt cut short is dropped."""
    lines = log.read_text(encoding="utf-8").split("\n") if log.exists() else [""]
    records = [json.loads(line) for line in lines[:-1] if line]
    # Left there, a cut last line would spoil the first one appended.
    write_whole(log, "".join(json.dumps(record) + "\n" for record in records))
    return records


def read_text(name: str, path: Path) -> str:
    """A user's text, with or without a byte order mark; ``name``: of what the command was given. Raises ValueError for
    what is not UTF-8, FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: {path} does not exist")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is not UTF-8: {error.reason} at byte {error.start}") from None
