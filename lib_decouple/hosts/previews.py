"""What a draft predicts, as a small picture by the WebUI's own approximate decoder."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import torch
from modules import sd_samplers_common, shared
from torch import Tensor

from ..profiles import EMBEDDED
from .family import profile_of_model

log = logging.getLogger("lib_decouple")

WHOLE, CHEAPEST = 0, 2
"""The hosts' numbers of the model's own decoder, and of that which is one matrix from a latent pixel to a colour, and
needs no download."""


@torch.no_grad()
def picture(x0: Tensor) -> Any:
    """The latents ``[channels, h, w]`` as the live preview would show them, where it is on, or else by the cheapest
    decoder: a Pillow image. None where the host can't.

    An embedded model's, which is small, by its own decoder: the others know the colours of Stable Diffusion's latents.
    """
    ways: list[tuple[int, ...]] = [(CHEAPEST,)]
    if getattr(shared.opts, "live_previews_enable", False):
        ways.insert(0, ())
    if profile_of_model(getattr(shared, "sd_model", None)).family in EMBEDDED:
        ways.insert(0, (WHOLE,))
    for decoder in ways:
        with suppress(Exception):
            return sd_samplers_common.single_sample_to_image(x0, *decoder)
    log.debug("the host has decoded no draft")
    return None
