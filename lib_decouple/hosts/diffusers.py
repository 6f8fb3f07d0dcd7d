"""Guidance of the real `diffusers` pipelines of Stable Diffusion 1.x, 2.x and SDXL.

The pipeline's own ``__call__`` makes the picture. Its two documented doors are enough: the first
latents are handed in, and ``callback_on_step_end`` may replace the latents after each step, which
are those that the next denoiser call sees and the sampler goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.gradient import rows
from ..core.host_pass import RowsInOrder
from ..core.maps import CrossAttentionLayer, Entity, ImagePlan
from ..core.observe import Observers
from ..core.presence import Curve, Presence
from ..core.trace import ImageTrace, Tracer
from ..profiles import closed
from ..prompt.align import Piece, align
from ..settings import DRAFTING, PRESENCE, Settings
from . import reasons
from .base import Level, Looking, Session, make_guide, unet_level
from .diffusers_drafts import Condition, Drafter, Search
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


BACKTRACK = 20
"""A full chunk ends behind its last comma where that is at most so many tokens before, as in the WebUIs."""


def chunks(pipe: Any, prompt: str) -> list[list[int]]:
    """The numbers of a prompt's tokens, without start and end, in chunks that the encoder can read; at least one."""
    tokenizer = pipe.tokenizer
    most = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    found: list[list[int]] = [[]]
    for token in tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids:
        own = found[-1]
        if len(own) == most:
            last = max((k for k, one in enumerate(own) if one == comma), default=-1)
            moved = own[last + 1 :] if token != comma and last >= 0 and most - last <= BACKTRACK else []
            del own[most - len(moved) :]
            found.append(moved)
        found[-1].append(token)
    return found


def pieces(pipe: Any, prompt: str) -> list[Piece]:
    """A prompt's tokens with their positions in the context, by the pipeline's own tokenizer."""
    size = pipe.tokenizer.model_max_length
    return [
        Piece(number * size + k, text, chunk=number)
        for number, chunk in enumerate(chunks(pipe, prompt))
        for k, text in enumerate(pipe.tokenizer.convert_ids_to_tokens(chunk), start=1)
    ]


def plan_image(pipe: Any, prompt: str, entities: Sequence[str], skip_missing: bool = False) -> ImagePlan:
    """Where the entities stand in the prompt. Raises EntityNotFound (a ValueError) with the prompt's words, unless
    ``skip_missing`` leaves those out."""
    own = pieces(pipe, prompt)
    places = align(entities, own, missing="skip" if skip_missing else "raise")
    found = tuple(Entity(name, tokens) for name, tokens in zip(entities, places) if tokens)
    return ImagePlan(found, end=own[-1].position + 1 if own else 1)


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
    where ``settings.stop`` goes by presence, nothing is left alone, and strength goes by it.
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

    def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def noise_of(seeds: Sequence[int]) -> Tensor:
        return first_noise(unet, generators_of(seeds), height // scale, width // scale)

    session, traces = None, [ImageTrace(tuple(names)) for names in entities]
    tells = bool(tell_at) or (settings.enabled and settings.look != "off")
    teller = Teller(count, tells, tell_at or LEVELS)
    no_drafts = ""
    if settings.enabled or observe or tell_at:
        settings = closed(settings, profile_of(unet), steps)
        plans = [plan_image(pipe, p, names, settings.skip_missing) for p, names in zip(prompts, entities)]
        traces = [ImageTrace(plan.names) for plan in plans]
        tracer = Tracer(traces, everything=True, keep_maps=keep_maps)
        level = default_level(unet)
        guide = make_guide(settings, unet, cross_attention_layers(unet), plans, level, layers, curve=curve)
        guide.gradient.loss = loss or guide.gradient.loss
        if guide.helping is not None:
            guide.helping.weighed = weighed
        to_tell = reader_of(cross_attention_layers(unet), plans, level)
        session = Session(
            guide,
            Looking(doubts=doubts),
            looks=lambda *_: observe or watch,
            moves=settings.enabled and settings.gradient != "none" and not observe,
            observers=Observers([tracer]),
        )
    encoded = _encoded(pipe, prompts, negative_prompt)
    embeds, extra = _conditioning(pipe, list(prompts), height, width, encoded)

    scheduler.set_timesteps(steps, device=device)
    search = None
    if settings.enabled and settings.look in DRAFTING and not observe:
        without = _negative(encoded)
        nothing = Condition(*_conditioning(pipe, [negative_prompt] * count, height, width, without))
        drafter = Drafter(pipe, to_tell, noise_of, Condition(embeds, extra), nothing, guidance_scale)
        search = Search(drafter, seeds, settings.drafts, curve if settings.look == "insist" else None)
        try:
            search.draft(range(count))
            seeds = search.drawn
        except Exception as error:
            search, no_drafts = None, reasons.explained(error)
    generators = generators_of(seeds)
    noise = first_noise(unet, generators, height // scale, width // scale)
    opens = step_openings(scheduler)
    total = sum(opens)
    start = scheduler.init_noise_sigma
    kept: list[Tensor] = []
    beside = ExitStack()  # what looks at the pipeline's own pass of a step, until that is over

    def guided(latents: Tensor, call: int) -> Tensor:
        """``latents`` as the sampler holds them before its denoiser call ``call``, guided where that opens a step."""
        if session is None or call >= len(opens) or not opens[call]:
            return latents
        timestep = scheduler.timesteps[call]
        probe = torch.ones((), device=device, dtype=torch.float32)
        shrink = scheduler.scale_model_input(probe, timestep)
        sigma = None if shrink == 1 else (shrink**-2 - 1).sqrt()

        def run(x: Tensor, images: Sequence[int]) -> None:
            conditions = {k: rows(v, images) for k, v in extra.items()} or None
            unet(
                x * shrink.to(x.dtype),
                timestep,
                encoder_hidden_states=rows(embeds, images),
                added_cond_kwargs=conditions,
                return_dict=False,
            )

        step = sum(opens[:call])
        noise = sigma_of(timestep) if settings.stop == PRESENCE else math.inf
        moved = session.before_step(latents, step, total, run, sigma, noise)
        if moved is not latents and getattr(scheduler, "last_sample", None) is not None:
            scheduler.last_sample = None  # UniPC's corrector would go on from the latents before the update
        size, level = latents.shape[-2:], sigma_of(timestep) if teller.waiting else math.inf
        beside.enter_context(session.beside_host(latents.shape, step, total, own_rows))
        if teller.due(level):
            beside.enter_context(teller.beside_host(level, size, unet, to_tell, own_rows, curve, reasons.explained))
        return moved

    def sigma_of(timestep: Tensor) -> float:
        kept = float(scheduler.alphas_cumprod[round(float(timestep))])
        return math.sqrt((1 - kept) / kept)

    def own_rows() -> RowsInOrder:
        """Under classifier-free guidance the unconditional rows come first."""
        first = count if pipe.do_classifier_free_guidance else 0
        return RowsInOrder(count, first, (first,))

    def after_step(_: Any, call: int, __: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        beside.close()
        if keep_latents:
            kept.append(given["latents"].clone())
        if progress:
            progress(call + 1, len(opens))
        return {"latents": guided(given["latents"], call + 1)}

    texts = {} if encoded else {"prompt": list(prompts), "negative_prompt": [negative_prompt] * count}
    beginning = noise * start
    with beside:
        moved = guided(beginning, 0)
        first = noise if moved is beginning else moved / start  # untouched: the pipeline's own start, to the bit
        result = pipe(
            **texts,
            **encoded,
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
    stood_aside, exact_since = (session.stood_aside, session.exact_since) if session else ("", "")
    picture = Picture(
        list(result.images), traces, stood_aside, kept, teller.told, [None] * count, no_drafts, exact_since,
        teller.readings,
    )  # fmt: skip
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


def _encoded(pipe: Any, prompts: Sequence[str], negative: str) -> dict[str, Tensor]:
    """What to hand to the pipeline instead of texts: none where all fit into one chunk, which it reads itself."""
    texts = [chunks(pipe, prompt) for prompt in (*prompts, negative)]
    count = max(map(len, texts))
    if count == 1:
        return {}
    rows = [own + [[]] * (count - len(own)) for own in texts]
    embeds, pooled = zip(*(_encode(pipe, [row[k] for row in rows]) for k in range(count)))
    joined = torch.cat(embeds, dim=1)
    n = len(prompts)
    found = {"prompt_embeds": joined[:n], "negative_prompt_embeds": joined[n:].repeat(n, 1, 1)}
    if pooled[0] is not None:
        found["pooled_prompt_embeds"] = pooled[0][:n]
        found["negative_pooled_prompt_embeds"] = pooled[0][n:].repeat(n, 1)
    return found


def _negative(encoded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what :func:`_encoded` gave, that of the negative prompts in the place of the prompts'."""
    return {key.removeprefix("negative_"): own for key, own in encoded.items() if key.startswith("negative_")}


def _encode(pipe: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """One chunk of each text: its context ``[rows, tokens, channels]`` and, of SDXL, what is pooled of it."""
    contexts, pooled = [], None
    xl = hasattr(pipe, "tokenizer_2")
    for which in ("", "_2") if xl else ("",):
        tokenizer, encoder = getattr(pipe, f"tokenizer{which}"), getattr(pipe, f"text_encoder{which}")
        size, pad = tokenizer.model_max_length, tokenizer.pad_token_id
        ids = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]
        numbers = torch.tensor([row + [pad] * (size - len(row)) for row in ids], device=pipe.unet.device)
        read = encoder(numbers, output_hidden_states=xl)
        contexts.append(read.hidden_states[-2] if xl else read[0])
        pooled = read[0] if xl else None
    return torch.cat(contexts, dim=-1).to(pipe.unet.dtype), pooled


def _conditioning(
    pipe: Any, prompts: list[str], height: int, width: int, given: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The conditional rows' context ``[batch, tokens, channels]``, and what SDXL adds to it; ``given``: of
    :func:`_encoded`."""
    xl = hasattr(pipe, "tokenizer_2")
    if given:
        embeds, pooled = given["prompt_embeds"], given.get("pooled_prompt_embeds")
    else:
        encoded = pipe.encode_prompt(
            prompts, device=pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        embeds, pooled = encoded[0], encoded[2] if xl else None
    if not xl or pooled is None:
        return embeds, {}
    times = pipe._get_add_time_ids(
        (height, width), (0, 0), (height, width), dtype=embeds.dtype, text_encoder_projection_dim=pooled.shape[-1]
    )
    return embeds, {"text_embeds": pooled, "time_ids": times.to(pooled.device).repeat(len(prompts), 1)}
