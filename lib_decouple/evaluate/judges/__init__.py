"""The judges, one file each; ``named`` builds them from the command line's words."""

from __future__ import annotations

from typing import Any

from . import detector
from .base import Judge, Missing, Options

KINDS: dict[str, Any] = {
    "detector": detector.Detector,
}

__all__ = ["KINDS", "Judge", "Missing", "Options", "named"]


def named(text: str, options: Options) -> tuple[list[Judge], list[str]]:
    """``"detector,clip:/folder"`` -> the judges that can be had, and why the others cannot.

    After the colon stands a local folder or a hub name. Captioning judges come first: others read captions.
    Raises ValueError for an unknown kind or one named twice.
    """
    found: list[Judge] = []
    lacking: list[str] = []
    kinds = [part.strip().partition(":")[::2] for part in text.split(",")]
    for kind, _ in kinds:
        if kind not in KINDS:
            raise ValueError(f"judges: {kind!r} is not one of {', '.join(KINDS)}")
        if [k for k, _ in kinds].count(kind) > 1:
            raise ValueError(f"judges: {kind!r} is named twice")
    for kind, source in sorted(kinds, key=lambda pair: pair[0] != "caption"):
        try:
            found.append(KINDS[kind](source, options))
        except Missing as error:
            lacking.append(f"{kind}: {error}")
    return found, lacking
