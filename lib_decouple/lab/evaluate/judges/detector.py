"""The embedded model's own detector: a rule that knows what its scenes can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...model.detector import judge
from .base import EXTRA, Item, Missing, Options


class Detector:
    """1 for each entity that is there, 0 for each that is not; the whole: each once and nothing else."""

    kind = name = "detector"
    threshold = 0.5

    def __init__(self, source: str, options: Options) -> None:
        if source:
            raise Missing(f"the detector is a rule and takes no model, but was given {source!r}")
        self.source = ""

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """Raises ValueError for an entity that the embedded model does not know."""
        found = []
        for item in items:
            verdict = judge(np.asarray(item.image.convert("RGB")), list(item.entities))
            there = {entity: float(entity not in verdict.missing) for entity in item.entities}
            found.append({"": float(verdict.right), EXTRA: float(max(0, verdict.extra)), **there})
        return found
