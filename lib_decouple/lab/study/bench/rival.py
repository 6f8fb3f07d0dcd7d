"""diffusers' Attend-and-Excite pipeline, by its own methods."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....core.maps import level_size
from ....hosts.base import make_guide
from ....hosts.diffusers import cross_attention_layers, default_level
from ....hosts.diffusers_loop import first_noise
from ....hosts.diffusers_prompts import plan_image
from ...evaluate.prompts.splits import Case
from ...model.scenes import joined
from ..unets import UNetWithInputs
from .ways import EXACT, GuidanceWay, guide_of


def rival_class() -> Any:
    """diffusers' Attend-and-Excite pipeline, or None where the installed diffusers has none."""
    try:
        from diffusers import StableDiffusionAttendAndExcitePipeline
    except ImportError:
        return None
    return StableDiffusionAttendAndExcitePipeline


def make_rival(**parts: Any) -> Any:
    """The rival's pipeline around a model's parts. Raises ValueError where diffusers has none."""
    from diffusers.utils import logging

    kind = rival_class()
    if kind is None:
        raise ValueError("Attend-and-Excite: the installed diffusers has no such pipeline")
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()  # it says at every turn that it is deprecated
    try:
        pipe = kind(**{name: parts.get(name) for name in names}, requires_safety_checker=False)
    finally:
        logging.set_verbosity(loudness)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rival_calls(found: UNetWithInputs) -> tuple[Callable[[], object], Callable[[], object]]:
    """A guided and an unguided step of the rival's ``__call__``, by its own methods and attention processors.

    After its guided steps it still runs its own pass and computes its loss, and uses neither.
    """
    unet = found.unet
    rival = make_rival(unet=unet)
    level = guide_of(found, GuidanceWay()).gradient.reader.layers[0].factor
    height, width = found.latents.shape[-2:]
    home = sys.modules[type(rival).__module__]
    rival.attention_store = home.AttentionStore(level_size(height, width, level))
    indices = [entity.tokens[0] for entity in found.entities]

    def step(update: bool) -> None:
        before = dict(unet.attn_processors)
        rival.register_attention_control()
        try:
            with torch.enable_grad():
                latents = found.latents.clone().detach().requires_grad_(True)
                latent = latents[0].unsqueeze(0)
                found.run(latent)
                unet.zero_grad()
                highest = rival._aggregate_and_get_max_attention_per_token(indices=indices)
                loss = rival._compute_loss(max_attention_per_index=highest)
                if update:
                    latent = rival._update_latent(latents=latent, loss=loss, step_size=20.0)
            found.host()
        finally:
            unet.set_attn_processor(before)

    return partial(step, True), partial(step, False)


def draw_rival(
    pipe: Any, group: Sequence[Case], steps: int, guidance_scale: float, told: dict[str, Any]
) -> tuple[list[Any], float, float]:
    """The rival's pipeline as it is, but for the level of its maps: images, then passes and gradients an image.

    ``told``: what its call is told beyond its own defaults. The counts are means over ``group``.
    """
    rival = make_rival(**pipe.components)
    unet: nn.Module = pipe.unet
    prompts = [joined(case.entities) for case in group]
    plans = [plan_image(pipe, prompt, case.entities) for prompt, case in zip(prompts, group)]
    side = pipe.unet.config.sample_size
    level = (
        make_guide(EXACT, unet, cross_attention_layers(unet), plans, default_level(unet))
        .gradient.reader.layers[0]
        .factor
    )
    noise = first_noise(unet, [torch.Generator("cpu").manual_seed(case.seed) for case in group])
    counted = {"passes": 0, "gradients": 0}
    update = rival._update_latent

    def counting(*given: Any, **more: Any) -> Tensor:
        counted["gradients"] += 1
        return update(*given, **more)

    def seen(*_: Any) -> None:
        # The CFG call runs without gradients, all other passes with them.
        counted["passes"] += torch.is_grad_enabled()

    rival._update_latent = counting
    handle = unet.register_forward_pre_hook(seen)
    try:
        images = rival(
            prompts,
            [[entity.tokens[-1] for entity in plan.entities] for plan in plans],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            latents=noise,
            attn_res=level_size(side, side, level),
            **told,
        ).images
    finally:
        handle.remove()
    count = len(group)
    return images, counted["passes"] / count, counted["gradients"] / count
