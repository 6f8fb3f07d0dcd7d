"""Guidance of the real `diffusers` pipelines of Stable Diffusion 1.x, 2.x and SDXL.

The pipeline's own ``__call__`` makes the picture. Its two documented doors are enough: the first
latents are handed in, and ``callback_on_step_end`` may replace the latents after each step, which
are those that the next denoiser call sees and the sampler goes on with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.drafts import Draft, MoveFailed, Score
from ..core.guidance import Guide
from ..core.maps import CrossAttentionLayer, MapReader
from ..core.memory import give_back
from ..core.observe import Observers
from ..core.presence import Curve, Presence, presence
from ..core.trace import ImageTrace, Tracer
from ..profiles import closed
from ..settings import DRAFTING, PRESENCE, Settings
from . import reasons
from .base import Level, Looking, Session, choose_layers, make_guide, unet_level
from .diffusers_drafts import Drafter, Search
from .diffusers_loop import BesideLoop, Loop, first_noise
from .diffusers_prompts import Condition, condition, encoded, negatives, plan_image
from .family import profile_of
from .seeds import SeedChoice
from .tell import LEVELS, Teller, reader_of

log = logging.getLogger("lib_decouple")


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
    choices: list[SeedChoice | None] = field(default_factory=list)
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


@dataclass
class Drawing:
    """One image a prompt by the pipeline's own loop, its latents guided as the settings say.

    Each image has the noise of its own seed, at the start and in samplers that add some on the way, so it comes out as
    it would alone. A sampler with several denoiser calls a step is guided at the first. A prompt longer than the text
    encoder's 75 tokens is encoded in chunks, as the WebUIs do. Raises ValueError for sizes that are not allowed.
    """

    pipe: Any
    prompts: Sequence[str]
    entities: Sequence[Sequence[str]]
    """Each prompt's; none: that image is left alone."""
    settings: Settings
    """Not enabled they draw plainly. What they leave open is filled by the profile of the model's family.

    Unless their "look" is "off" the picture says which entity is there. At "choose" the noise is that of the best of
    several seeds, or each image's own where drafting fails; at "insist" that of the first whose draft is accepted, and
    an image whose run tells midway that an entity is missing is drawn again from the next, by itself and to its end.
    """
    _: KW_ONLY
    seeds: Sequence[int]
    steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    """In pixels; None, as for the width, is the UNet's own."""
    width: int | None = None
    negative_prompt: str = ""
    observe: bool = False
    """Draw plainly, and look at the maps of every step."""
    watch: bool = False
    """Look at the maps of every step, of those that move nothing, too."""
    keep_maps: bool = False
    keep_latents: bool = False
    curve: Curve | None = None
    """The checkpoint's, by which chances are told."""
    output: str = "pil"
    progress: Callable[[int, int], None] | None = None
    layers: Callable[[list[CrossAttentionLayer]], list[CrossAttentionLayer]] = list
    """Chooses among the layers of the level that the settings name."""
    doubts: Callable[[str], None] | None = None
    """Has the first gradient held against finite differences, and is told where they disagree."""
    tell_at: Sequence[float] = ()
    """Falling noise levels at which to tell whatever the settings say, each at the first pass at or below it."""
    loss: Callable[[Tensor], Tensor] | None = None
    """For trials: of maps ``[1, entities, h, w]``, ``[1]``, in the place of the settings'."""
    instead: Callable[[Guide, Sequence[int]], Guide] | None = None
    """For trials: of the settings' guide and the images' seeds, what moves the latents in its place."""
    weighed: bool = False
    """For trials: where "stop" goes by presence, nothing is left alone, and strength goes by it."""
    conditional_drafts: bool = False
    """For trials: drafts are made without the unconditional half of CFG."""
    unguided_drafts: bool = False
    """For trials: drafts are made without guidance, though the run is guided."""
    size: tuple[int, int] = field(init=False)
    """Height and width."""

    def __post_init__(self) -> None:
        prompts, entities, seeds = len(self.prompts), len(self.entities), len(self.seeds)
        if not prompts == entities == seeds:
            raise ValueError(f"prompts: {prompts}, but entities: {entities} and seeds: {seeds}")
        self.size = _size(self.pipe, self.height, self.width)
        if self._is_watched:
            self.settings = closed(self.settings, profile_of(self.pipe.unet), self.steps)

    @property
    def _is_watched(self) -> bool:
        return bool(self.settings.enabled or self.observe or self.tell_at)

    @torch.no_grad()
    def picture(self) -> Picture:
        """Draw. Raises EntityNotFound for an entity that is not in its prompt, ValueError for layers that are not."""
        count = len(self.prompts)
        picture = Picture([], [ImageTrace(tuple(names)) for names in self.entities], choices=[None] * count)
        tells = bool(self.tell_at) or (self.settings.enabled and self.settings.look != "off")
        teller = Teller(count, tells, self.tell_at or LEVELS)
        beside = self._beside(teller, picture) if self._is_watched else None
        texts, own = self._made_ready()
        search = self._search(beside, own, texts, picture) if beside else None
        generators, noise = self._start(search.drawn if search else self.seeds)
        loop = Loop(self.pipe, count, own, beside, self.keep_latents, self.progress)
        plainly = {} if texts else {"prompt": list(self.prompts), "negative_prompt": [self.negative_prompt] * count}
        picture.images = loop.run(
            noise,
            **plainly,
            **texts,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=self.size[0],
            width=self.size[1],
            generator=generators,
            output_type=self.output,
        )
        picture.latents, picture.told, picture.readings = loop.latents, teller.told, teller.readings
        if beside:
            picture.stood_aside, picture.exact_since = beside.session.stood_aside, beside.session.exact_since
        if search:
            if self.settings.look == "insist":
                insist(picture, search, self._again, self.settings.restarts)
            picture.choices = search.choices
        return picture

    def _made_ready(self) -> tuple[dict[str, Any], Condition]:
        """The encoded texts, and what the UNet is given of them; the scheduler's timesteps are set."""
        texts = encoded(self.pipe, self.prompts, self.negative_prompt)
        own = condition(self.pipe, list(self.prompts), *self.size, texts)
        self.pipe.scheduler.set_timesteps(self.steps, device=self.pipe.unet.device)
        return texts, own

    def _start(self, seeds: Sequence[int]) -> tuple[list[torch.Generator], Tensor]:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        height, width = (side // self.pipe.vae_scale_factor for side in self.size)
        return generators, first_noise(self.pipe.unet, generators, height, width)

    def _beside(self, teller: Teller, picture: Picture) -> BesideLoop:
        """What guides and looks on; the ``picture``'s traces are of the entities that the prompts name."""
        settings, unet = self.settings, self.pipe.unet
        named = zip(self.prompts, self.entities)
        plans = [plan_image(self.pipe, prompt, names, settings.skip_missing) for prompt, names in named]
        picture.traces = [ImageTrace(plan.names) for plan in plans]
        layers, level = cross_attention_layers(unet), default_level(unet)
        guide = make_guide(settings, unet, layers, plans, level, self.layers, curve=self.curve)
        guide.gradient.loss = self.loss or guide.gradient.loss
        if guide.helping is not None:
            guide.helping.weighed = self.weighed
        if self.instead is not None:
            guide = self.instead(guide, self.seeds)
        session = Session(
            guide,
            Looking(doubts=self.doubts),
            looks=lambda *_: self.observe or self.watch,
            moves=settings.enabled and settings.gradient != "none" and not self.observe,
            observers=Observers([Tracer(picture.traces, everything=True, keep_maps=self.keep_maps)]),
        )
        needs_noise = settings.stop == PRESENCE or self.instead is not None
        return BesideLoop(session, teller, reader_of(layers, plans, level), self.curve, needs_noise)

    def _search(self, beside: BesideLoop, own: Condition, texts: dict[str, Any], picture: Picture) -> Search | None:
        """The seeds' drafts, where the settings want some, guided as the run will be where that is possible; the
        ``picture`` is told why there are none."""
        look, count, session = self.settings.look, len(self.prompts), beside.session
        if not self.settings.enabled or look not in DRAFTING or self.observe:
            return None
        curve = self.curve if look == "insist" else None
        accepts = curve is not None and curve.draft is not None  # which was learned of unguided drafts

        def drafted(guide: Guide | None) -> Search:
            drafter = self._drafter(beside.reader, own, texts, guide)
            search = Search(drafter, self.seeds, self.settings.drafts, curve)
            search.draft(range(count))
            return search

        try:
            if session.moves and not (accepts or self.unguided_drafts):
                try:
                    return drafted(session.guide)
                except MoveFailed as failed:
                    reason = reasons.explained(failed.__cause__ or failed)
                # outside of the handler, whose error holds on to the failed pass
                log.warning("Attention Decoupling drafts without guidance: %s", reason)
                give_back()
            return drafted(None)
        except Exception as error:
            picture.no_drafts = reasons.explained(error)
            return None

    def _drafter(self, reader: MapReader, own: Condition, texts: dict[str, Any], guide: Guide | None) -> Drafter:
        nothing = condition(self.pipe, [self.negative_prompt] * len(self.prompts), *self.size, negatives(texts))
        scale = 1.0 if self.conditional_drafts else self.guidance_scale
        return Drafter(self.pipe, reader, lambda seeds: self._start(seeds)[1], own, nothing, scale, guide)

    @torch.no_grad()
    def drafts(self, score: Score = presence, part: str = "auto") -> list[Draft]:
        """Of each image the draft from its own seed that "choose" would make of it, and nothing is drawn.

        ``score``: of the maps of that ``part`` of the level's layers. Raises what hinders the drafts.
        """
        count, layers, level = len(self.prompts), cross_attention_layers(self.pipe.unet), default_level(self.pipe.unet)
        beside = self._beside(Teller(count, False), Picture([], []))
        texts, own = self._made_ready()
        guide = beside.session.guide if beside.session.moves and not self.unguided_drafts else None
        reader = MapReader(choose_layers(layers, 0, part, level), beside.reader.images)
        drafter = replace(self._drafter(reader, own, texts, guide), score=score)
        return drafter(range(count), self.seeds)

    def _again(self, images: Sequence[int], seeds: Sequence[int]) -> Picture:
        """These images from other seeds, without drafts."""
        drawing = replace(
            self,
            prompts=[self.prompts[k] for k in images],
            entities=[self.entities[k] for k in images],
            settings=replace(self.settings, look="tell"),
            seeds=seeds,
        )
        return drawing.picture()


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
