"""What was learned of a checkpoint's presence scores: found by its SHA-256, the embedded model's beside its weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..core.presence import Curve
from .checkpoints import EMBEDDED

log = logging.getLogger("lib_decouple")

ENDING = ".presence.json"
"""Of a curve's file that ships beside the weights."""


def as_dict(curve: Curve, checkpoint: str) -> dict[str, Any]:
    """A curve's file: its levels, and the SHA-256 of the ``checkpoint`` that it was learned for."""
    return {"checkpoint": checkpoint, **curve.as_dict()}


def find(checkpoint: str, folder: Path | None = None) -> Curve | None:
    """The curve of the checkpoint with this SHA-256: the user's in ``folder``, ``SHA256.json``, or one that ships.

    None where there is none, or where its file cannot be read, which the log says.
    """
    if not checkpoint:
        return None
    own = [] if folder is None else [folder / f"{checkpoint}.json"]
    for file in (*own, *sorted(EMBEDDED.glob(f"*{ENDING}"))):
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["checkpoint"] == checkpoint:
                return Curve.from_dict(found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("Attention Decoupling can't read what was learned of a checkpoint, %s: %s", file.name, error)
    return None
