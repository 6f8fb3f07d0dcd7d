"""Ways to guide, and the models that they are measured on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch

from ....core.guidance import Guide
from ....core.maps import CrossAttentionLayer
from ....hosts.family import profile_of
from ....settings import Settings
from ...evaluate.arms import embedded
from ..unets import UNetWithInputs, embedded_unet, unet_config, with_inputs

Layers = list[CrossAttentionLayer]

RUN, GUIDED = 50, 25
"""Steps of the composed run, and how many of them are guided."""

COSTED = Settings(enabled=True).fixed()
"""What a step costs does not depend on the loss or the step's size: the defaults, which guide the first half."""

EXACT = embedded("com", 2)
"""The embedded model's overlap guidance: what the cheaper ways are measured against."""


@dataclass(frozen=True)
class GuidanceWay:
    """One way to guide: from which layers of the level, and how."""

    kind: Literal["plain", "guide", "whole", "late", "rival"] = "guide"
    """``guide``: a pass of its own, ended after the last layer; ``whole``: not ended; ``late``: the
    host's own pass, one step late; ``rival``: diffusers' Attend-and-Excite pipeline."""
    path: Literal["auto", "all", "to first up", "first up", "to middle", "down"] = "auto"
    """Which layers of the level; ``auto``: those that the model's profile reads."""

    def settings(self, settings: Settings) -> Settings:
        """``settings`` such that :meth:`layers` has the whole level to choose from."""
        return settings if self.path == "auto" else dataclasses.replace(settings, layers="all")

    def layers(self, level: Layers) -> Layers:
        """Those of the level's layers that this way reads. Raises ValueError when none is left."""
        up = [layer for layer in level if layer.part == "up"]
        before = [layer for layer in level if layer.part != "up"]
        chosen = {
            "auto": level,
            "all": level,
            "to first up": before + up[:1],
            "first up": up[:1],
            "to middle": before,
            "down": [layer for layer in level if layer.part == "down"],
        }[self.path]
        if not chosen:
            raise ValueError(f"layers: this model's level has none on the path {self.path!r}")
        return chosen


WAYS: dict[str, GuidanceWay] = {
    "plain": GuidanceWay("plain"),
    "default layers": GuidanceWay(),
    "all layers": GuidanceWay(path="all"),
    "up to the first up layer": GuidanceWay(path="to first up"),
    "first up layer alone": GuidanceWay(path="first up"),
    "up to the middle": GuidanceWay(path="to middle"),
    "down path alone": GuidanceWay(path="down"),
    "whole pass": GuidanceWay("whole"),
    "one step late": GuidanceWay("late"),
    "diffusers Attend-and-Excite": GuidanceWay("rival"),
}
MODELS = {"embedded": "the embedded model", "sd15": "Stable Diffusion 1.5, random weights"}
SAME_ON_SD15 = {"default layers": "up to the first up layer", "up to the middle": "down path alone"}
"""Its profile reads the first transformer on the way up, which has one layer, and its middle block stands a level
deeper."""


def guide_of(found: UNetWithInputs, way: GuidanceWay, settings: Settings = COSTED) -> Guide:
    """A guide of one image that guides this way."""
    settings = way.settings(settings)
    if way.path == "auto":
        settings = dataclasses.replace(settings, layers=profile_of(found.unet).layers)
    guide: Guide = found.guide(settings, way.layers)
    if way.kind == "whole":
        guide.gradient.reader = dataclasses.replace(guide.gradient.reader, stop=False)
        # What runs behind the last layer takes no gradient, which a proof would hold against it.
        guide.gradient.proved = True
    return guide


def model_to_measure(model: str) -> UNetWithInputs:
    """The "embedded" model or "sd15" with random weights, and its inputs. Raises ValueError for another."""
    torch.manual_seed(0)
    if model == "embedded":
        return embedded_unet()
    if model != "sd15":
        raise ValueError(f"models: {model!r} is not one of {', '.join(MODELS)}")
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(unet_config(model)).eval()
    return with_inputs(unet, unet.config.sample_size)
