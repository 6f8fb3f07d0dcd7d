"""Which family of models a denoiser belongs to, told alike in every host."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..profiles import UNKNOWN, Profile, of_context


def profile_of(unet: nn.Module) -> Profile:
    """The profile of a UNet of ``ldm``, ``sgm`` or diffusers; that of unknown models for any other network."""
    layers = (module for name, module in unet.named_modules() if name.rpartition(".")[2] == "attn2")
    return of_context(next((getattr(getattr(one, "to_k", None), "in_features", None) for one in layers), None))


def profile_of_model(model: Any) -> Profile:
    """That of a WebUI's loaded model (its ``sd_model``), which may be none yet."""
    objects = getattr(model, "forge_objects", None)
    whole = getattr(getattr(objects, "unet", None), "model", None) or getattr(model, "model", None)
    unet = getattr(whole, "diffusion_model", None)
    return profile_of(unet) if isinstance(unet, nn.Module) else UNKNOWN
