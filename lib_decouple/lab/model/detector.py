"""A rule that says what a picture of the embedded model shows.

Pixels go to the nearest palette colour, each colour to connected blobs, and a blob counts as
an entity when it is large enough and has that entity's silhouette. Nothing is learned, so
the rule's own error can be measured on drawn scenes (`study detector`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .scenes import COLOURS, ENTITIES, GROUND, Placed, silhouette

_PALETTE = np.array([GROUND, *COLOURS.values()], dtype=np.float32)
_SMALL = 90
"""Blobs below this many pixels are rims and specks, not objects (a drawn entity has 290 or more)."""
_WHOLE = 200
"""From this many pixels on a blob may be an entity."""
_ALIKE = 0.6
"""Least intersection over union with the silhouette of the same area and centre."""


@dataclass(frozen=True)
class Blob:
    """One connected region of one palette colour; centre in pixels."""

    entity: str
    x: float
    y: float
    area: int
    likeness: float
    """Intersection over union with the entity's silhouette, 0..1."""

    @property
    def whole(self) -> bool:
        """Is this the entity, rather than a scrap of its colour?"""
        return self.area >= _WHOLE and self.likeness >= _ALIKE


@dataclass(frozen=True)
class Verdict:
    """What a picture shows against what its prompt named."""

    missing: tuple[str, ...]
    """Named entities that are not there."""
    extra: int
    """Objects beyond one of each named entity: duplicates, unnamed ones, scraps."""

    @property
    def right(self) -> bool:
        """Each named entity exactly once and nothing else."""
        return not self.missing and not self.extra


_UNIT_RADIUS = 15.0
_UNIT: dict[str, tuple[int, float, float]] = {}
for _entity in ENTITIES:
    _mask = silhouette(Placed(_entity, 48.0, 48.0, _UNIT_RADIUS))
    _ys, _xs = np.nonzero(_mask)
    _UNIT[_entity] = (int(_mask.sum()), float(_xs.mean() + 0.5 - 48.0), float(_ys.mean() + 0.5 - 48.0))


def _likeness(mask: np.ndarray, entity: str) -> float:
    area, dx, dy = _UNIT[entity]
    ys, xs = np.nonzero(mask)
    scale = (mask.sum() / area) ** 0.5
    ideal = silhouette(
        Placed(entity, float(xs.mean()) + 0.5 - dx * scale, float(ys.mean()) + 0.5 - dy * scale, _UNIT_RADIUS * scale),
        mask.shape[0],
    )
    return float((mask & ideal).sum() / (mask | ideal).sum())


def blobs(image: np.ndarray) -> list[Blob]:
    """Objects in a picture, uint8 ``[side, side, 3]``; scraps too, rims not."""
    distance = ((image.astype(np.float32)[:, :, None] - _PALETTE) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    # A rim between a dark object and the ground passes through other colours: opening drops such thin lines.
    found = []
    for index, entity in enumerate(ENTITIES, start=1):
        opened = ndimage.binary_opening(nearest == index, np.ones((5, 5), bool))
        labels, count = ndimage.label(opened)
        for label in range(1, count + 1):
            mask = labels == label
            area = int(mask.sum())
            if area < _SMALL:
                continue
            ys, xs = np.nonzero(mask)
            found.append(Blob(entity, float(xs.mean()), float(ys.mean()), area, _likeness(mask, entity)))
    return found


def judge(image: np.ndarray, named: list[str]) -> Verdict:
    """Compare a picture, uint8 ``[side, side, 3]``, with the entities that its prompt names.

    Raises ValueError for an entity outside :data:`ENTITIES`.
    """
    unknown = [entity for entity in named if entity not in ENTITIES]
    if unknown:
        raise ValueError(f"named: {unknown[0]!r} is unknown to the detector; one of {', '.join(ENTITIES)}")
    found = blobs(image)
    whole = Counter(blob.entity for blob in found if blob.whole)
    missing = tuple(entity for entity in named if not whole[entity])
    # A malformed blob of a missing entity's colour is that entity badly drawn: missing, and not extra as well.
    excused = sum(min(1, sum(not b.whole and b.entity == entity for b in found)) for entity in missing)
    return Verdict(missing, len(found) - (len(named) - len(missing)) - excused)
