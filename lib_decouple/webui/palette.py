"""The entities' colours, in their order, on chips, maps and plots."""

from __future__ import annotations

from collections.abc import Sequence

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
"""Okabe and Ito's, which people with impaired colour vision tell apart (https://jfly.uni-koeln.de/color/), without
black and without the blue on which black text has a contrast below 4.5."""


def colours(entities: Sequence[str]) -> list[str]:
    """A colour for each of an image's entities; they begin again where there are more."""
    return [COLOURS[i % len(COLOURS)] for i in range(len(entities))]
