"""A gradient taken from the host's own pass and applied one step late: guidance without a pass of its own.

The conditional half of a CFG call runs with a gradient while the maps are read beside its attention;
the update moves the latents before the next call, where exact guidance would take a fresh gradient [I].
For the benchmark: SD 1.x and 2.x, DDIM and other samplers whose model input is the latents themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.gradient import LossGradient, frozen
from ...core.guidance import Guide
from ...core.maps import CrossAttentionLayer
from ...core.trace import ImageTrace, StepRecord, Unmeasured
from ...hosts.base import make_guide
from ...hosts.diffusers import Picture, cross_attention_layers, default_level
from ...hosts.diffusers_loop import first_noise
from ...hosts.diffusers_prompts import plan_image
from ...settings import Settings


def own_pass(
    gradient: LossGradient, latents: Tensor, run: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The host's conditional prediction ``run(latents)``, and what its maps say on the way.

    Returns the prediction and the gradient, both like ``latents`` ``[batch, ...]``, between them the
    losses ``[batch]``, and each image's maps ``[entities, h, w]``.
    """
    reader = replace(gradient.reader, stop=False)
    with torch.enable_grad(), frozen(gradient.model):
        leaf = latents.detach().clone().requires_grad_()
        # FlopCounterMode cannot follow a leaf that enters the model itself.
        with reader.reading() as capture:
            predicted = run(leaf * 1)
        maps = reader.maps(capture, latents.shape[-2:], range(len(reader.images)))
        losses = torch.cat([gradient.loss(own[None]) for own in maps])
        (found,) = torch.autograd.grad(losses.sum(), leaf)
    return predicted.detach(), losses.detach(), found, [own.detach() for own in maps]


def _moved(guide: Guide, step: int, steps: int, losses: Tensor, gradient: Tensor, latents: Tensor) -> Tensor:
    """``latents`` moved as exact guidance would have moved those of ``step``, which left ``gradient``."""
    update = guide.rule.update(latents, gradient, step, steps, guide.schedule.place(step, steps), None)
    if guide.stop_below is not None:
        update = update * (losses > guide.stop_below).view(-1, 1, 1, 1)
    return latents + update


@torch.no_grad()
def generate_late(
    pipe: Any,
    prompts: Sequence[str],
    entities: Sequence[Sequence[str]],
    settings: Settings,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    guidance_scale: float = 7.5,
    output: str = "pil",
    layers: Callable[[list[CrossAttentionLayer]], list[CrossAttentionLayer]] = list,
) -> Picture:
    """Draw one image a prompt as a :class:`~lib_decouple.hosts.diffusers.Drawing` does, its updates one step late.

    Refinement needs passes of its own and is left out. The traces count no passes.
    Raises ValueError for a sampler that scales the model's input, EntityNotFound as that does.
    """
    unet, scheduler, device = pipe.unet, pipe.scheduler, pipe.unet.device
    if scheduler.init_noise_sigma != 1:
        raise ValueError(f"sampler: {type(scheduler).__name__} scales the model's input; take DDIM")
    plans = [plan_image(pipe, prompt, names) for prompt, names in zip(prompts, entities)]
    guide = make_guide(settings, unet, cross_attention_layers(unet), plans, default_level(unet), layers)
    traces = [ImageTrace(plan.names) for plan in plans]
    named, unnamed = pipe.encode_prompt(list(prompts), device, 1, True, negative_prompt=[""] * len(prompts))
    latents = first_noise(unet, [torch.Generator("cpu").manual_seed(seed) for seed in seeds])
    scheduler.set_timesteps(steps, device=device)
    move: Callable[[Tensor], Tensor] | None = None
    for step, timestep in enumerate(scheduler.timesteps):
        latents = move(latents) if move else latents
        move = None

        def run(x: Tensor, context: Tensor = named, timestep: Tensor = timestep) -> Tensor:
            return unet(x, timestep, encoder_hidden_states=context, return_dict=False)[0]

        if settings.enabled and guide.schedule.guided(step, steps):
            predicted, losses, gradient, maps = own_pass(guide.gradient, latents, run)
            move = partial(_moved, guide, step, steps, losses, gradient)
            for trace, plan, own, loss in zip(traces, plans, maps, losses.tolist()):
                trace.steps.append(StepRecord(step, loss, Unmeasured(plan.names, own), passes=0))
        else:
            predicted = run(latents)
        rest = run(latents, unnamed)
        noise = rest + guidance_scale * (predicted - rest)
        latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
    if output == "latent":
        return Picture(list(latents), traces)
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return Picture(list(pipe.image_processor.postprocess(image, output_type=output)), traces)
