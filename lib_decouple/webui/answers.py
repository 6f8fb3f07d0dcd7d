"""Answers that can always be sent, whatever a request held."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEEPEST = 100
"""Lists and objects within one another; what is deeper is left out of an answer."""


def sayable(value: Any, depth: int = DEEPEST) -> Any:
    """``value`` (plain JSON) as UTF-8 and JSON can hold it: half a character (a lone surrogate) as its escape,
    what is no number as a text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (Mapping, list, tuple)) and not depth:
        return "…"
    if isinstance(value, Mapping):
        return {sayable(key): sayable(one, depth - 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [sayable(one, depth - 1) for one in value]
    return value


def shown(value: Any, longest: int = 200) -> str:
    """``value`` in a message: as Python writes it, at most ``longest`` characters. Raises RecursionError."""
    text = repr(value)
    return text if len(text) <= longest else text[:longest] + "…"


def too_deep(value: Any, most: int) -> bool:
    """Do lists and objects stand within one another more than ``most`` times?"""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for one in level
            if isinstance(one, (Mapping, list, tuple))
            for inner in (one.values() if isinstance(one, Mapping) else one)
        ]
        if not level:
            return False
    return True


def unsendable(value: Any) -> bool:
    """Does ``value`` (plain JSON, not deep) hold what a host's answer can't: half a character, what is no number, or a
    whole number beyond 64 bits? A host sends back what it was asked."""
    if isinstance(value, Mapping):
        return any(map(unsendable, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return any(map(unsendable, value))
    if isinstance(value, int):
        return not -(2**63) <= value < 2**63
    return value != sayable(value)
