"""What guidance did, per image and step, as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from . import losses


@dataclass
class StepRecord:
    """One look at one image's maps, before the update that followed."""

    step: int
    loss: float
    iou: dict[str, float]
    """"cat/dog" -> soft intersection over union of the normalised maps, in [0, 1]."""
    distance: dict[str, float]
    """"cat/dog" -> distance of the centres of mass, longer side = 1."""
    intensity: dict[str, float]
    """Entity -> highest attention of its map, in [0, 1] for raw maps."""
    spread: dict[str, float]
    """Entity -> variance around its centre of mass, in [0, 1/2]."""
    update_norm: float = 0.0
    """Length of the update over the length of the latents, before it."""
    passes: int = 1
    """Guided passes of the denoiser at this step."""
    maps: Tensor | None = None
    """``[entities, h, w]`` on the CPU, when maps are kept."""

    def mean_iou(self) -> float:
        """Mean over the pairs; 0 for a single entity."""
        return sum(self.iou.values()) / len(self.iou) if self.iou else 0.0


@dataclass
class ImageTrace:
    """All looks at one image."""

    entities: tuple[str, ...]
    steps: list[StepRecord] = field(default_factory=list)

    @property
    def passes(self) -> int:
        """Guided passes of the denoiser in all."""
        return sum(record.passes for record in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without the maps."""
        steps = [{k: v for k, v in asdict(record).items() if k != "maps"} for record in self.steps]
        return {"entities": list(self.entities), "steps": steps}


@torch.no_grad()
def look(step: int, loss: float, names: tuple[str, ...], maps: Tensor, keep: bool) -> StepRecord:
    """Measure one image's maps ``[entities, h, w]``."""
    maps = maps.detach()[None]
    pairs = [f"{a}/{b}" for a, b in combinations(names, 2)]
    return StepRecord(
        step=step,
        loss=loss,
        iou=dict(zip(pairs, losses.pair_iou(maps, "union")[0].tolist())),
        distance=dict(zip(pairs, losses.pair_distance(maps)[0].tolist())),
        intensity=dict(zip(names, losses.intensity(maps, "max")[0].tolist())),
        spread=dict(zip(names, losses.spread(maps)[0].tolist())),
        maps=maps[0].float().cpu() if keep else None,
    )
