"""Which family of models a denoiser belongs to, told alike in every host."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..embedded import place
from ..profiles import EMBEDDED, UNKNOWN, Profile, of_context
from . import anima

_ALIKE = 0.01
"""Weights are the same when they differ by less than this share of their norm: bfloat16 rounds by a quarter of it."""


def profile_of(unet: nn.Module) -> Profile:
    """The profile of a UNet of ``ldm``, ``sgm`` or diffusers, or of Anima; that of unknown models for any other."""
    if anima.cross_attention_layers(unet):
        return anima.PROFILE
    layers = (module for name, module in unet.named_modules() if name.rpartition(".")[2] == "attn2")
    keys = next((key for one in layers if (key := getattr(one, "to_k", None)) is not None), None)
    if keys is None:
        return UNKNOWN
    embedded = next((name for name in EMBEDDED if _is_one_of(keys, _keys_of(name))), None)
    return EMBEDDED[embedded] if embedded else of_context(getattr(keys, "in_features", None))


@lru_cache
def _keys_of(name: str) -> Sequence[torch.Tensor]:
    """The weights that make cross-attention's keys in an embedded checkpoint, ``[inner, context]`` each."""
    file = place.HERE / f"{name}.safetensors"
    if not file.is_file():
        return ()
    with safe_open(file, "pt") as weights:
        names = list(weights.keys())
        return [weights.get_tensor(name).float() for name in names if name.endswith("attn2.to_k.weight")]


def _is_one_of(layer: nn.Module, known: Sequence[torch.Tensor]) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_meta or all(weight.shape != one.shape for one in known):
        return False
    own = weight.detach().float().cpu()
    return any(own.shape == one.shape and (own - one).norm() < _ALIKE * one.norm() for one in known)


def denoiser_of(model: Any) -> nn.Module | None:
    """The denoiser of a WebUI's loaded model (its ``sd_model``), which may be none yet."""
    objects = getattr(model, "forge_objects", None)
    whole = getattr(getattr(objects, "unet", None), "model", None) or getattr(model, "model", None)
    denoiser = getattr(whole, "diffusion_model", None)
    return denoiser if isinstance(denoiser, nn.Module) else None


def profile_of_model(model: Any) -> Profile:
    """The profile of :func:`denoiser_of` a WebUI's model."""
    denoiser = denoiser_of(model)
    return UNKNOWN if denoiser is None else profile_of(denoiser)
