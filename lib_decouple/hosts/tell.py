"""Telling which entity is in a picture and which is perhaps not, off the host's own passes and without one more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from ..core.host_pass import ConditionalRows, reading_beside
from ..core.maps import CrossAttentionLayer, ImagePlan, MapReader
from ..core.presence import Curve, Presence, read
from .base import Level, choose_layers

log = logging.getLogger("lib_decouple")

LEVELS = (1.6, 0.5)
"""Noise levels: the first pass at or below each is read. Above the first the maps do not tell; the last one that was
read is what is told."""


def reader_of(layers: Sequence[CrossAttentionLayer], plans: Sequence[ImagePlan], default: Level) -> MapReader:
    """Raw maps as a curve is learned from: of the family's own layers, whatever guidance reads."""
    return MapReader(choose_layers(layers, 0, "auto", default), plans)


@dataclass
class Teller:
    """What is told of each of ``images``, so far."""

    images: int
    wanted: bool = True
    levels: Sequence[float] = LEVELS
    told: list[Presence | None] = field(init=False)
    readings: list[list[Presence]] = field(init=False)
    """Of each image all that was told, in order; the last is in ``told``."""
    _left: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.told = [None] * self.images
        self.readings = [[] for _ in range(self.images)]
        self._left = list(self.levels) if self.wanted else []

    @property
    def waiting(self) -> bool:
        """Is there anything still to be read?"""
        return bool(self._left)

    def due(self, sigma: float) -> bool:
        """Is the pass at this noise level one to read?"""
        return bool(self._left) and sigma <= self._left[0]

    def give_up(self, reason: str) -> None:
        """Tell no more of this run than was told."""
        self._left = []
        log.warning("Attention Decoupling can't tell which entity is there: %s", reason)

    @contextmanager
    def beside_host(
        self,
        sigma: float,
        size: Sequence[int],
        model: nn.Module,
        reader: MapReader,
        rows: Callable[[], ConditionalRows],
        curve: Curve | None,
        explained: Callable[[Exception], str],
    ) -> Iterator[None]:
        """Inside, the host makes its own pass at ``sigma`` on latents of height and width ``size``. Nothing is raised
        but what the body raises."""
        self._left = [level for level in self._left if level < sigma]
        if not reader.named:
            yield
            return
        with reading_beside(model, reader, rows) as passed:
            yield
        try:
            for image, maps in passed.maps(size, reader.named).items():
                self.told[image] = found = read(reader.images[image].names, maps, sigma, curve)
                self.readings[image].append(found)
        except Exception as error:
            self.give_up(explained(error))
