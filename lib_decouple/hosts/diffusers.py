"""Guidance of the real `diffusers` pipelines of Stable Diffusion 1.x, 2.x and SDXL.

The pipeline's own ``__call__`` makes the picture. Its two documented doors are enough: the first
latents are handed in, and ``callback_on_step_end`` may replace the latents after each step, which
are those that the next denoiser call sees and the sampler goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.maps import CrossAttentionLayer, Entity, ImagePlan
from ..core.trace import ImageTrace, Tracer
from ..profiles import closed
from ..prompt.align import Piece, align
from ..settings import Settings
from .base import Level, Session, make_guide
from .family import profile_of


def cross_attention_layers(unet: nn.Module) -> list[CrossAttentionLayer]:
    """Every ``attn2`` of a UNet2DConditionModel, in order of execution."""
    parts: Any = unet
    found: list[CrossAttentionLayer] = []

    def collect(prefix: str, block: nn.Module, factor: int) -> None:
        for name, module in block.named_modules():
            if name.rpartition(".")[2] == "attn2":
                found.append(CrossAttentionLayer(f"{prefix}.{name}", module, factor))

    factor = 1
    for i, block in enumerate(parts.down_blocks):
        collect(f"down_blocks.{i}", block, factor)
        factor *= 2 if block.downsamplers is not None else 1
    if parts.mid_block is not None:
        collect("mid_block", parts.mid_block, factor)
    for i, block in enumerate(parts.up_blocks):
        collect(f"up_blocks.{i}", block, factor)
        factor //= 2 if block.upsamplers is not None else 1
    return found


def default_level(unet: nn.Module) -> Level:
    """Where to read maps, per model family.

    All layers at a quarter of the latents' side on SD 1.x, 2.x and SDXL [F: 16x16 at 512 px; 32x32 at
    1024 px]. On a model with a single level of cross-attention, as the embedded one, the level's last
    layer: there it alone localises (`study layers`).
    """
    factors = {layer.factor for layer in cross_attention_layers(unet)}
    return Level(min(factors), "last") if len(factors) == 1 else Level(4)


def pieces(pipe: Any, prompt: str) -> list[Piece]:
    """A prompt's tokens with their positions in the context, by the pipeline's own tokenizer."""
    tokenizer = pipe.tokenizer
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    texts = tokenizer.convert_ids_to_tokens(ids)
    return [Piece(i, text) for i, text in enumerate(texts) if 0 < i < len(texts) - 1]


def plan_image(pipe: Any, prompt: str, entities: Sequence[str], skip_missing: bool = False) -> ImagePlan:
    """Where the entities stand in the prompt. Raises EntityNotFound (a ValueError) with the prompt's words, unless
    ``skip_missing`` leaves those out."""
    own = pieces(pipe, prompt)
    places = align(entities, own, missing="skip" if skip_missing else "raise")
    found = tuple(Entity(name, tokens) for name, tokens in zip(entities, places) if tokens)
    return ImagePlan(found, end=len(own) + 1)


def step_openings(scheduler: Any) -> list[bool]:
    """Of each denoiser call, whether it is the first of a sampler's step; after ``set_timesteps``.

    At the others (Heun, DPM2, PNDM's start) the sampler evaluates a point on the way and goes on
    from latents that it has put aside, which an update of those at hand would not reach.
    """
    calls = len(scheduler.timesteps)
    if hasattr(scheduler, "state_in_first_order"):
        return [call % 2 == 0 for call in range(calls)]
    if hasattr(scheduler, "prk_timesteps"):
        warm = len(scheduler.prk_timesteps)
        return [call % 4 == 0 if call < warm else warm > 0 or call != 1 for call in range(calls)]
    return [True] * calls


def first_noise(
    unet: Any, generators: Sequence[torch.Generator], height: int | None = None, width: int | None = None
) -> Tensor:
    """Noise ``[generators, channels, height, width]``, each image's from its own generator; the UNet's own size by
    default."""
    shape = (1, unet.config.in_channels, height or unet.config.sample_size, width or unet.config.sample_size)
    return torch.cat([torch.randn(shape, generator=own) for own in generators]).to(unet.device, unet.dtype)


@dataclass
class Picture:
    """One run's result."""

    images: list[Any]
    """PIL images, or latents where asked for."""
    traces: list[ImageTrace]
    stood_aside: str = ""
    latents: list[Tensor] = field(default_factory=list)
    """After every denoiser call, where asked for."""


@torch.no_grad()
def generate(
    pipe: Any,
    prompts: Sequence[str],
    entities: Sequence[Sequence[str]],
    settings: Settings,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
    observe: bool = False,
    watch: bool = False,
    keep_maps: bool = False,
    keep_latents: bool = False,
    output: str = "pil",
    progress: Callable[[int, int], None] | None = None,
    layers: Callable[[list[CrossAttentionLayer]], list[CrossAttentionLayer]] = list,
) -> Picture:
    """Draw one image a prompt with the pipeline's own loop, its latents guided as the settings say.

    ``entities`` names each prompt's entities (none: that image is left alone); ``settings.enabled``
    off draws plainly, and with ``observe`` looks at the maps of every step without touching anything.
    Each image has the noise of its own seed, at the start and in samplers that add some on the way, so
    it comes out as it would alone. A sampler with several denoiser calls a step is guided at the first.
    What the settings leave open is filled by the profile of the model's family. ``layers`` chooses
    among the layers of the level that the settings name (all of them when left out).
    Raises EntityNotFound for an entity that is not in its prompt, ValueError for bad sizes or layers.
    """
    count = len(prompts)
    if not len(entities) == len(seeds) == count:
        raise ValueError(f"prompts: {count}, but entities: {len(entities)} and seeds: {len(seeds)}")
    unet, scheduler, device = pipe.unet, pipe.scheduler, pipe.unet.device
    scale = pipe.vae_scale_factor
    height, width = height or unet.config.sample_size * scale, width or unet.config.sample_size * scale
    for name, value in (("height", height), ("width", width)):
        if value % scale:
            raise ValueError(f"{name}: {value} is not allowed; a multiple of {scale} pixels")
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    noise = first_noise(unet, generators, height // scale, width // scale)

    session, traces = None, [ImageTrace(tuple(names)) for names in entities]
    if settings.enabled or observe:
        settings = closed(settings, profile_of(unet), steps)
        plans = [plan_image(pipe, p, names, settings.skip_missing) for p, names in zip(prompts, entities)]
        traces = [ImageTrace(plan.names) for plan in plans]
        tracer = Tracer(traces, everything=True, keep_maps=keep_maps)
        level = default_level(unet)
        guide = make_guide(settings, unet, cross_attention_layers(unet), plans, level, layers, [tracer])
        session = Session(guide, looks=lambda *_: observe or watch, moves=not observe)
    embeds, extra = _conditioning(pipe, list(prompts), height, width)

    scheduler.set_timesteps(steps, device=device)
    opens = step_openings(scheduler)
    total = sum(opens)
    start = scheduler.init_noise_sigma
    kept: list[Tensor] = []

    def guided(latents: Tensor, call: int) -> Tensor:
        """``latents`` as the sampler holds them before its denoiser call ``call``, guided where that opens a step."""
        if session is None or call >= len(opens) or not opens[call]:
            return latents
        timestep = scheduler.timesteps[call]
        probe = torch.ones((), device=device, dtype=torch.float32)
        shrink = scheduler.scale_model_input(probe, timestep)
        sigma = None if shrink == 1 else (shrink**-2 - 1).sqrt()

        def run(x: Tensor, images: Sequence[int]) -> None:
            chosen = list(images)
            conditions = {k: v[chosen] for k, v in extra.items()} or None
            unet(
                x * shrink.to(x.dtype),
                timestep,
                encoder_hidden_states=embeds[chosen],
                added_cond_kwargs=conditions,
                return_dict=False,
            )

        moved = session.before_step(latents, sum(opens[:call]), total, run, sigma)
        if moved is not latents and getattr(scheduler, "last_sample", None) is not None:
            scheduler.last_sample = None  # UniPC's corrector would go on from the latents before the update
        return moved

    def after_step(_: Any, call: int, __: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        if keep_latents:
            kept.append(given["latents"].clone())
        if progress:
            progress(call + 1, len(opens))
        return {"latents": guided(given["latents"], call + 1)}

    beginning = noise * start
    moved = guided(beginning, 0)
    first = noise if moved is beginning else moved / start  # untouched: the pipeline's own start, to the bit
    result = pipe(
        prompt=list(prompts),
        negative_prompt=[negative_prompt] * count,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        latents=first,
        generator=generators,
        output_type=output,
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=["latents"],
    )
    return Picture(list(result.images), traces, session.stood_aside if session else "", kept)


def _conditioning(pipe: Any, prompts: list[str], height: int, width: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The conditional rows' context ``[batch, tokens, channels]``, and what SDXL adds to it."""
    encoded = pipe.encode_prompt(
        prompts, device=pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if not hasattr(pipe, "tokenizer_2"):
        return encoded[0], {}
    embeds, _, pooled, _ = encoded
    times = pipe._get_add_time_ids(
        (height, width), (0, 0), (height, width), dtype=embeds.dtype, text_encoder_projection_dim=pooled.shape[-1]
    )
    return embeds, {"text_embeds": pooled, "time_ids": times.to(pooled.device).repeat(len(prompts), 1)}
