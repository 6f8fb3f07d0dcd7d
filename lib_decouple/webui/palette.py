"""The entities' colours, on chips, maps and plots."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
"""Okabe and Ito's, which people with impaired colour vision tell apart (https://jfly.uni-koeln.de/color/), without
black and without the blue on which black text has a contrast below 4.5."""


def colours(entities: Sequence[str]) -> list[str]:
    """A colour for each of an image's entities. A name decides its own, so that an entity keeps it wherever and with
    whatever others it is shown; where an earlier one has that, the next that is free. They begin again after six."""
    found: list[str] = []
    free: list[str] = []
    for name in entities:
        free = free or list(COLOURS)
        own = crc32(name.lower().encode()) % len(COLOURS)
        colour = next(one for one in COLOURS[own:] + COLOURS[:own] if one in free)
        free.remove(colour)
        found.append(colour)
    return found
