"""What every backend is: a checkpoint somewhere that draws the plan's images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..plan import Job
from ..prompts import Prompt

HASH_DIGITS = 10
"""Of a checkpoint's SHA-256, as AUTOMATIC1111 shows it."""


TOLD_AT = (4.0, 2.8, 2.0, 1.6, 1.25, 1.0, 0.8, 0.63, 0.5, 0.4, 0.3)
"""Noise levels at which presence is read for ``calibrate --curve``: from above where anything was seen to tell to below
where the setting "tell" reads last."""


class Unreachable(Exception):
    """This endpoint can't draw now: gone, hung, or it fails; another may."""


class WrongCheckpoint(Unreachable):
    """This endpoint has another checkpoint than the run."""


@dataclass(frozen=True)
class About:
    """What would draw. ``checkpoint``: the first ten hex digits of its SHA-256."""

    host: str
    version: str
    checkpoint: str
    name: str = ""
    """Of the checkpoint, for people."""


@dataclass(frozen=True)
class Drawn:
    """One image and what is known of its making; None where a host does not tell."""

    image: bytes
    """PNG without any text: an image must not tell its arm."""
    entities: tuple[str, ...]
    """Those that guidance used; the prompt's own where there was none."""
    tokens: dict[str, list[int]] | None
    seconds: float
    passes: float | None
    trace: dict[str, Any] | None
    stood_aside: str
    about: About
    maps: np.ndarray | None = field(default=None, compare=False)
    """``[entities, h, w]``, mean over the first half of the looks, where asked for."""


class Backend(Protocol):
    """Draws images. Every method may raise :class:`Unreachable`."""

    batch: int
    """Most jobs of one :meth:`draw`."""

    def about(self) -> About:
        """Asked anew each time."""

    def tokens(self, prompt: Prompt) -> dict[str, list[int]] | None:
        """Entity -> its token positions. Raises ValueError for one that is not in the prompt."""

    def draw(self, jobs: Sequence[Job]) -> list[Drawn]:
        """One image for each job, all of one arm's settings. Raises ValueError for what no endpoint could draw."""

    def seconds_a_step(self) -> float:
        """Of one image drawn plainly; measured by a small try whose picture is thrown away."""


def wrong_checkpoint(drawn: Sequence[Drawn], expected: str, name: str) -> str:
    """Why images are not of the run, where another checkpoint drew one of them; else ""."""
    wrong = next((one.about for one in drawn if expected and one.about.checkpoint not in ("", expected)), None)
    if wrong is None:
        return ""
    return (
        f"checkpoint: {name} has {wrong.name} [{wrong.checkpoint}] now, the run has [{expected}]. That image was not "
        "kept; what is drawn is"
    )


def as_png(image: Image.Image) -> bytes:
    """The pixels alone."""
    bare = Image.new("RGB", image.size)
    bare.paste(image.convert("RGB"))
    data = io.BytesIO()
    bare.save(data, "PNG")
    return data.getvalue()


def sha256(path: Path) -> str:
    """Of a file, or of a folder's weights and configurations in the order of their names; hex."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".json"))
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()
