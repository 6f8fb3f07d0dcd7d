"""Guidance of the real `diffusers` pipelines of Stable Diffusion 1.x, 2.x and SDXL.

The pipeline's own ``__call__`` makes the picture. Its two documented doors are enough: the first
latents are handed in, and ``callback_on_step_end`` may replace the latents after each step, which
are those that the next denoiser call sees and the sampler goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.maps import CrossAttentionLayer
from ..core.observe import Observers
from ..core.presence import Curve, Presence
from ..core.trace import ImageTrace, Tracer
from ..profiles import closed
from ..settings import DRAFTING, PRESENCE, Settings
from . import reasons
from .base import Level, Looking, Session, make_guide, unet_level
from .diffusers_drafts import Drafter, Search
from .diffusers_loop import Beside, Loop, first_noise
from .diffusers_prompts import condition, encoded, negatives, plan_image
from .family import profile_of
from .seeds import Choice
from .tell import LEVELS, Teller, reader_of


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
    """Where to read maps when the user does not say."""
    return unet_level(cross_attention_layers(unet))


@dataclass
class Picture:
    """One run's result."""

    images: list[Any]
    """PIL images, or latents where asked for."""
    traces: list[ImageTrace]
    stood_aside: str = ""
    latents: list[Tensor] = field(default_factory=list)
    """After every denoiser call, where asked for."""
    told: list[Presence | None] = field(default_factory=list)
    """Of each image, which entity is there; None where nothing was told."""
    choices: list[Choice | None] = field(default_factory=list)
    """Of each image, which seed's noise was drawn; None where its own was, without drafts."""
    no_drafts: str = ""
    """Why there were none, though they were asked for."""
    exact_since: str = ""
    """From which step on, and why, gradients are exact though late ones were wanted."""
    readings: list[list[Presence]] = field(default_factory=list)
    """Of each image all that was told, one a noise level."""
    not_insisted: str = ""
    """Why no run was begun again, or no draft accepted, though it was asked for."""

    def replaced(self, image: int, other: Picture, there: int) -> None:
        """Have ``image`` be that which is at ``there`` in another of this kind."""
        self.images[image], self.traces[image] = other.images[there], other.traces[there]
        self.told[image], self.readings[image] = other.told[there], other.readings[there]
        for mine, others in zip(self.latents, other.latents):
            mine[image] = others[there]
        self.stood_aside = self.stood_aside or other.stood_aside
        self.exact_since = self.exact_since or other.exact_since


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
    curve: Curve | None = None,
    output: str = "pil",
    progress: Callable[[int, int], None] | None = None,
    layers: Callable[[list[CrossAttentionLayer]], list[CrossAttentionLayer]] = list,
    doubts: Callable[[str], None] | None = None,
    tell_at: Sequence[float] = (),
    loss: Callable[[Tensor], Tensor] | None = None,
    weighed: bool = False,
    conditional_drafts: bool = False,
) -> Picture:
    """Draw one image a prompt with the pipeline's own loop, its latents guided as the settings say.

    ``entities`` names each prompt's entities (none: that image is left alone); ``settings.enabled``
    off draws plainly, and with ``observe`` looks at the maps of every step without touching anything.
    Each image has the noise of its own seed, at the start and in samplers that add some on the way, so
    it comes out as it would alone. A sampler with several denoiser calls a step is guided at the first.
    What the settings leave open is filled by the profile of the model's family. ``layers`` chooses
    among the layers of the level that the settings name (all of them when left out).
    Unless ``settings.look`` is "off" the picture says which entity is there, in chances by the checkpoint's ``curve``.
    At "choose" the noise is that of the best of several seeds, or each image's own where drafting fails; at "insist"
    that of the first whose draft is accepted, and an image whose run tells midway that an entity is missing is drawn
    again from the next, by itself and to its end.
    A prompt longer than the text encoder's 75 tokens is encoded in chunks, as the WebUIs do.
    ``doubts`` has the first gradient held against finite differences, and is told where they disagree.
    ``tell_at``: falling noise levels at which to tell whatever the settings say, each at the first pass at or below it.
    For trials: ``loss``, of maps ``[1, entities, h, w]``, ``[1]``, stands in the place of the settings'; ``weighed``:
    where ``settings.stop`` goes by presence, nothing is left alone, and strength goes by it; ``conditional_drafts``:
    drafts are made without the unconditional half of CFG.
    Raises EntityNotFound for an entity that is not in its prompt, ValueError for bad sizes or layers.
    """
    count = len(prompts)
    if not len(entities) == len(seeds) == count:
        raise ValueError(f"prompts: {count}, but entities: {len(entities)} and seeds: {len(seeds)}")
    height, width = _size(pipe, height, width)

    def start_of(seeds: Sequence[int]) -> tuple[list[torch.Generator], Tensor]:
        own = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return own, first_noise(pipe.unet, own, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)

    beside, traces = None, [ImageTrace(tuple(names)) for names in entities]
    teller = Teller(count, bool(tell_at) or (settings.enabled and settings.look != "off"), tell_at or LEVELS)
    if settings.enabled or observe or tell_at:
        settings = closed(settings, profile_of(pipe.unet), steps)
        plans = [plan_image(pipe, p, names, settings.skip_missing) for p, names in zip(prompts, entities)]
        traces = [ImageTrace(plan.names) for plan in plans]
        all_layers, level = cross_attention_layers(pipe.unet), default_level(pipe.unet)
        guide = make_guide(settings, pipe.unet, all_layers, plans, level, layers, curve=curve)
        guide.gradient.loss = loss or guide.gradient.loss
        if guide.helping is not None:
            guide.helping.weighed = weighed
        session = Session(
            guide,
            Looking(doubts=doubts),
            looks=lambda *_: observe or watch,
            moves=settings.enabled and settings.gradient != "none" and not observe,
            observers=Observers([Tracer(traces, everything=True, keep_maps=keep_maps)]),
        )
        beside = Beside(session, teller, reader_of(all_layers, plans, level), curve, settings.stop == PRESENCE)

    texts = encoded(pipe, prompts, negative_prompt)
    own = condition(pipe, list(prompts), height, width, texts)
    pipe.scheduler.set_timesteps(steps, device=pipe.unet.device)
    search, no_drafts = None, ""
    if beside and settings.enabled and settings.look in DRAFTING and not observe:
        nothing = condition(pipe, [negative_prompt] * count, height, width, negatives(texts))
        scale = 1.0 if conditional_drafts else guidance_scale
        drafter = Drafter(pipe, beside.reader, lambda seeds: start_of(seeds)[1], own, nothing, scale)
        search = Search(drafter, seeds, settings.drafts, curve if settings.look == "insist" else None)
        try:
            search.draft(range(count))
            seeds = search.drawn
        except Exception as error:
            search, no_drafts = None, reasons.explained(error)
    generators, noise = start_of(seeds)
    loop = Loop(pipe, count, own, beside, keep_latents, progress)
    plainly = {} if texts else {"prompt": list(prompts), "negative_prompt": [negative_prompt] * count}
    images = loop.run(
        noise,
        **plainly,
        **texts,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        generator=generators,
        output_type=output,
    )
    stood_aside, exact_since = (beside.session.stood_aside, beside.session.exact_since) if beside else ("", "")
    picture = Picture(
        images, traces, stood_aside, loop.latents, teller.told, [None] * count, no_drafts, exact_since, teller.readings
    )
    if search is None:
        return picture

    def again(images: Sequence[int], seeds: Sequence[int]) -> Picture:
        return generate(
            pipe, [prompts[k] for k in images], [entities[k] for k in images], replace(settings, look="tell"),
            seeds=seeds, steps=steps, guidance_scale=guidance_scale, height=height, width=width,
            negative_prompt=negative_prompt, watch=watch, keep_maps=keep_maps, keep_latents=keep_latents, curve=curve,
            output=output, progress=progress, layers=layers, doubts=doubts, tell_at=tell_at, loss=loss, weighed=weighed,
        )  # fmt: skip

    if settings.look == "insist":
        insist(picture, search, again, settings.restarts)
    picture.choices = search.choices
    return picture


def _size(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """In pixels, the UNet's own by default. Raises ValueError by name for what is no whole number of latents."""
    scale = pipe.vae_scale_factor
    own = pipe.unet.config.sample_size * scale
    height, width = height or own, width or own
    for name, value in (("height", height), ("width", width)):
        if value % scale:
            raise ValueError(f"{name}: {value} is not allowed; a multiple of {scale} pixels")
    return height, width


def insist(
    picture: Picture, search: Search, again: Callable[[Sequence[int], Sequence[int]], Picture], restarts: int
) -> None:
    """Draw what lacks an entity midway ``again``, given images and their seeds, and leave in ``picture`` the surest."""
    every = range(len(picture.images))
    first = Picture(
        list(picture.images), list(picture.traces), latents=[own.clone() for own in picture.latents],
        told=list(picture.told), readings=list(picture.readings),
    )  # fmt: skip
    drawn = [{number: (first, image)} for image, number in enumerate(search.numbers)]
    if search.curve is None or search.curve.draft is None:
        picture.not_insisted = reasons.NO_CURVE if search.curve is None else reasons.NO_DRAFT_CURVE
    lacking = list(every)
    for left in range(restarts, -1, -1):
        for image in lacking:
            own = drawn[image][search.numbers[image]]
            midway = next((one.chances for one in own[0].readings[own[1]] if one.chances), None)
            if midway:
                search.images[image].runs[search.numbers[image]] = midway
        lacking = [k for k in lacking if search.images[k].lacks(search.numbers[k]) and not search.images[k].is_spent]
        if not (left and lacking):
            break
        try:
            search.draft(lacking)
            made = again(lacking, [search.drawn[image] for image in lacking])
        except Exception as error:
            picture.not_insisted = reasons.explained(error)
            break
        for there, image in enumerate(lacking):
            drawn[image][search.numbers[image]] = made, there
    for image in every:
        if search.images[image].runs:
            search.numbers[image] = search.images[image].surest()
        picture.replaced(image, *drawn[image][search.numbers[image]])
