"""What guidance did, per image and step, as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import losses
from .observe import Observation

Moment = Literal["unguided", "first", "last"]
"""``unguided``: at sampling's first step, before anything was moved; ``first``: at the first guided step, after its
update; ``last``: after the last guided step's update."""


@dataclass(frozen=True)
class Measures:
    """One look at one image's maps. Pairs are written "cat/dog"."""

    iou: dict[str, float]
    """Pair -> soft intersection over union of the normalised maps, in [0, 1]."""
    distance: dict[str, float]
    """Pair -> distance of the centres of mass, longer side = 1."""
    kl: dict[str, float]
    """Pair -> symmetric Kullback-Leibler divergence of the normalised maps in nats, from 0 (alike)."""
    cc: dict[str, float]
    """Pair -> 1 - clustering compactness: the share of attention at pixels where the other is stronger, in [0, 1/2]."""
    intensity: dict[str, float]
    """Entity -> highest attention of its map, in [0, 1] for raw maps."""
    spread: dict[str, float]
    """Entity -> variance around its centre of mass, in [0, 1/2]."""

    def mean_iou(self) -> float:
        """Mean over the pairs; 0 for a single entity."""
        return sum(self.iou.values()) / len(self.iou) if self.iou else 0.0


@dataclass(frozen=True)
class Unmeasured:
    """Maps ``[entities, h, w]`` whose measures nobody has asked for yet."""

    names: tuple[str, ...]
    maps: Tensor


class _MeasuredWhenRead:
    """A field that is given :class:`Measures`, :class:`Unmeasured` or None, and is measured when it is first read."""

    def __init__(self, optional: bool) -> None:
        self._optional = optional

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, record: None, owner: type) -> None: ...
    @overload
    def __get__(self, record: StepRecord, owner: type) -> Any: ...
    def __get__(self, record: StepRecord | None, owner: type) -> Any:
        if record is None:
            if self._optional:
                return None  # the default
            raise AttributeError(self._name)
        value = vars(record)[self._name]
        if isinstance(value, Unmeasured):
            value = vars(record)[self._name] = measure(value.names, value.maps)
        return value

    def __set__(self, record: StepRecord, value: Measures | Unmeasured | None) -> None:
        vars(record)[self._name] = value


@dataclass
class StepRecord:
    """One image at one step that was looked at."""

    step: int
    loss: float
    """Before the update."""
    before: _MeasuredWhenRead = _MeasuredWhenRead(optional=False)
    """:class:`Measures` before the update, or without one."""
    after: _MeasuredWhenRead = _MeasuredWhenRead(optional=True)
    """:class:`Measures` after it, where somebody wanted to see them, or None."""
    guided: bool = True
    """Could this step move the image, or was it only looked at?"""
    update_norm: float = 0.0
    """Length of the update over the length of the latents, before it."""
    passes: int = 1
    """Passes of the denoiser for the loss at this step."""
    maps: Tensor | None = None
    """``[entities, h, w]`` on the CPU, before the update, when maps are kept."""
    taken_back: bool = False
    """Was an update undone, since it raised the loss however small it was made? Looked at with few steps alone."""


@dataclass(frozen=True)
class KeptMaps:
    """An image's maps at one moment."""

    step: int
    names: tuple[str, ...]
    maps: Tensor
    """``[entities, h, w]``, float16 on the CPU."""


@dataclass
class ImageTrace:
    """All looks at one image."""

    entities: tuple[str, ...]
    steps: list[StepRecord] = field(default_factory=list)
    moments: dict[Moment, KeptMaps] = field(default_factory=dict)
    looks: int = 0
    """Passes without a gradient, to see how far an update may go."""

    @property
    def passes(self) -> int:
        """Passes of the denoiser in all, beside sampling's own."""
        return sum(record.passes for record in self.steps) + self.looks

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without the maps."""
        return {"entities": list(self.entities), "steps": [plain(record) for record in self.steps]}


def plain(record: StepRecord) -> dict[str, Any]:
    """A record as JSON, without its maps."""
    return {name: value for name, value in asdict(record).items() if name != "maps"}


@torch.no_grad()
def measure(names: tuple[str, ...], maps: Tensor) -> Measures:
    """Measure one image's maps ``[entities, h, w]``."""
    maps = maps.detach()[None]
    by_pair = [
        losses.pair_iou(maps, "union"),
        losses.pair_distance(maps),
        losses.pair_kl(maps),
        losses.pair_iou(maps, "half"),  # of two maps this is 1 - compactness
    ]
    by_entity = [losses.intensity(maps, "max"), losses.spread(maps)]
    pairs = [f"{a}/{b}" for a, b in combinations(names, 2)]
    # One copy to the CPU for all of them.
    values = iter(torch.cat([*by_pair, *by_entity], 1)[0].tolist())
    found = [{of: next(values) for of in keys} for keys in (*[pairs] * len(by_pair), *[names] * len(by_entity))]
    return Measures(*found)


def kept(step: int, names: tuple[str, ...], maps: Tensor) -> KeptMaps:
    """Maps ``[entities, h, w]`` of a moment, small and on the CPU."""
    return KeptMaps(step, names, maps.detach().to("cpu", torch.float16))


@dataclass
class Tracer:
    """The observer that writes a run's traces, one an image.

    ``everything``: looks before the first guided step are recorded, too, not for their moment alone.
    ``keep_maps`` puts each look's maps into its record, ``keep_moments`` those of the three moments into the trace.
    """

    traces: list[ImageTrace]
    everything: bool = False
    keep_maps: bool = False
    keep_moments: bool = False

    def __call__(self, seen: Observation) -> None:
        """Write what was seen into its image's trace."""
        trace = self.traces[seen.image]
        behind = any(record.guided for record in trace.steps)
        if seen.guided or behind or self.everything:
            trace.steps.append(self._record(seen))
        trace.looks += seen.looks
        if self.keep_moments:
            self._keep(trace, seen, behind)

    def _record(self, seen: Observation) -> StepRecord:
        return StepRecord(
            seen.step,
            seen.loss,
            Unmeasured(seen.names, seen.maps),
            None if seen.after is None else Unmeasured(seen.names, seen.after),
            seen.guided,
            seen.update,
            seen.passes,
            seen.maps.float().cpu() if self.keep_maps else None,
            seen.taken_back,
        )

    def _keep(self, trace: ImageTrace, seen: Observation, behind: bool) -> None:
        moments = trace.moments
        if seen.step == 0:
            moments["unguided"] = kept(seen.step, seen.names, seen.maps)
        if not seen.guided:
            if behind:
                moments["last"] = kept(seen.step, seen.names, seen.maps)
            return
        moments.pop("last", None)
        if seen.after is not None:
            after = kept(seen.step, seen.names, seen.after)
            moments.update({"last": after} if behind else {"first": after, "last": after})
