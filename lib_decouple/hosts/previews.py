"""What a draft predicts, as a small picture by the WebUI's own approximate decoder."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import torch
from modules import sd_samplers_common, shared
from torch import Tensor

log = logging.getLogger("lib_decouple")

CHEAPEST = 2
"""The hosts' number of the decoder that is one matrix from a latent pixel to a colour, and that needs no download."""


@torch.no_grad()
def picture(x0: Tensor) -> Any:
    """The latents ``[channels, h, w]`` as the live preview would show them, where it is on, or else by the cheapest
    decoder: a Pillow image. None where the host can't."""
    cheapest: tuple[int, ...] = (CHEAPEST,)
    for decoder in ((), cheapest) if getattr(shared.opts, "live_previews_enable", False) else (cheapest,):
        with suppress(Exception):
            return sd_samplers_common.single_sample_to_image(x0, *decoder)
    log.debug("the host has decoded no draft")
    return None
