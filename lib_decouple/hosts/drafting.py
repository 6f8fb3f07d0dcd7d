"""``look: choose`` around a WebUI's sampler: of several seeds' noise that is drawn which drafts best.

The host's own ``sample``, in img2img ``sample_img2img``, runs twice: first with the drafts in the place of the
sampler's function, so that model, conditions and latents are made ready by the host; then, from the chosen noise, as
it ever does. Every noise is one that the host makes for a seed, and that seed takes the place of the one that was
asked for, so ancestral noise, the second pass of hires fix and the infotext follow by themselves.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from modules import rng, shared
from torch import Tensor

from ..core.drafts import Draft, MoveFailed, draft, in_groups, passes
from ..core.insist import Accepts, Noises, nothing
from ..core.maps import MapReader
from ..core.memory import free, give_back
from . import previews, reasons
from .borrowed import borrow
from .reasons import Unsupported
from .seeds import SeedChoice, chosen, seeds_to_draft

if TYPE_CHECKING:
    from .sampling import SamplingPass

log = logging.getLogger("lib_decouple")

Sample = Callable[[Tensor], Any]
"""From the first noise to what the host's sampler makes of it, with all else that the host gave it."""

MOST_ROWS = 16
"""Latents that are drafted in one call of the host's denoiser, though memory would do for more."""

MADE_OTHERWISE = 0.01
"""Of the host's first latents, the share of their length from which on they are not taken for picture and noise alone;
rounding to 16 bits makes less than a tenth of it."""

OF_ITS_OWN_SEED = ("X/Y/Z plot", "Prompt matrix", "Prompts from file or textbox", "Loopback")
"""The hosts' scripts that give each picture which they draw parameters of its own."""


def hindrance(p: Any) -> str:
    """Why no other seed's noise can be drawn in the job ``p``, as that seed would not draw the picture again; "" where
    it can."""
    if not begins_with_picture(p):
        return ""
    if getattr(p, "mask", None) is not None and getattr(p, "inpainting_fill", None) == 2 and not p.subseed_strength:
        return (
            "“Masked content” is latent noise, which is made of the seed before drafts are; choose another, such as "
            "original"
        )
    script = reasons.selected_script(p)
    if script and script not in OF_ITS_OWN_SEED:
        return f"the script “{script}” may put a picture together of several, of which it tells one seed alone"
    return ""


def begins_with_picture(p: Any) -> bool:
    """Is the job one of img2img?"""
    return hasattr(p, "init_images")


class ChoosingSampler:
    """Stands in the place of the host's function that samples until it is called, once."""

    def __init__(self, sampling: SamplingPass) -> None:
        self.sampling, self.sampler = sampling, sampling.p.sampler
        from_picture = begins_with_picture(sampling.p)
        self.name, self.place = ("sample_img2img", 1) if from_picture else ("sample", 0)
        """Of the host's function, and where among its arguments the noise is."""
        self.sample = getattr(self.sampler, self.name)
        self.replaced = vars(self.sampler).get(self.name)
        """What another extension has put there for all batches, which img2img draws by one sampler."""
        strength = getattr(sampling.p, "initial_noise_multiplier", None) if from_picture else None
        self.strength = 1.0 if strength is None else float(strength)
        """What the host multiplies the noise by."""
        self.variation = bool(sampling.p.subseed_strength)
        self.seeds: list[list[int]] = []
        """Of each image, those that may be drafted."""
        self.images: list[Noises] = []
        self.numbers: list[int] = []
        """Of each image, which of its noises is drawn."""
        self.pictures: dict[int, dict[int, Any]] = {}
        """Image -> seed -> what its draft looks like."""

    def attach(self) -> None:
        """Take the function's place."""
        setattr(self.sampler, self.name, self)

    def __call__(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample as the host's own function does, from the noise that drafts best."""
        if vars(self.sampler).get(self.name) is self:
            if self.replaced is None:
                delattr(self.sampler, self.name)
            else:
                setattr(self.sampler, self.name, self.replaced)
        before, x, after = args[: self.place], args[self.place], args[self.place + 1 :]

        def sample(noise: Tensor) -> Any:
            return self.sample(p, *before, noise, *after, **kwargs)

        noise, failed = None, ""
        try:
            noise = self._chosen(x, sample)
        except Exception as error:
            log.debug("drafting failed", exc_info=True)
            failed = reasons.explained(error, reasons.switched_on(p))
        if failed:  # outside of the handler, whose error holds on to the failed pass
            give_back()
            self.sampling.give_up_drafts(failed)
            with suppress(Exception):  # what has just failed may be the making of noise
                self._first(self._seeds())  # the host's global generator is left as it was
        if not self.sampling.looking.draws:
            return self._undrawn(x)
        return sample(x) if noise is None else self._drawn(noise, sample)

    def _undrawn(self, x: Tensor) -> Tensor:
        """Latents like ``x``, of a batch that is not drawn."""
        own = self.sampling
        own.drew = False
        if getattr(own.p, "enable_hr", False):
            borrow(own.p, enable_hr=False)  # its second pass would begin right behind
        own.detach()
        shared.state.skipped = True  # so that other extensions leave the batch alone
        return x

    def _drawn(self, noise: Tensor, sample: Sample) -> Any:
        """What the host makes of the ``noise`` that was chosen."""
        return sample(noise)

    def _accepts(self) -> Accepts:
        """Which drafts need no better one."""
        return nothing

    def _chosen(self, x: Tensor, sample: Sample) -> Tensor | None:
        """The noise to draw; the job's seeds are those that it is of. None where the host is to end, or nothing is
        drawn. Raises what hinders the drafts."""
        if reason := hindrance(self.sampling.p):
            raise Unsupported(reason)
        count, asked = self.sampling.settings.drafts, self._seeds()[: len(x)]
        self.seeds = [seeds_to_draft(seed, count) for seed in asked]
        noises = [self._first([own[k] for own in self.seeds])[1] for k in range(count)]
        if not torch.equal(noises[0], x):
            raise Unsupported("another extension has made the first noise itself, so that of other seeds isn't known")
        self.images = [Noises(count, self._accepts()) for _ in asked]
        self.drafts = Drafts(self.sampling, noises, self.images, self._one_by_one)
        if not self._draft(sample, self.images):
            return None
        if not self.sampling.looking.draws:
            self.sampling.choices = [self._choice(image, None) for image in range(len(self.images))]
            return None
        return self._take_up([own.next() for own in self.images])

    _one_by_one = False
    """Is each draft looked at before the next one is made?"""

    def _draft(self, sample: Sample, wanting: Sequence[Noises]) -> bool:
        """Make the drafts that are wanted for some of the images; were they made? Raises what hinders them."""
        self.drafts.wanting = wanting
        with self.drafts.in_the_place_of_sampling(self.sampler):
            sample(self.drafts.noises[0])
        failed, self.drafts.failed = self.drafts.failed, None
        if failed is not None:
            try:
                raise failed
            finally:
                del failed  # this very frame is in its traceback, and both would stay
        return not (shared.state.interrupted or shared.state.skipped)

    def _take_up(self, numbers: Sequence[int]) -> Tensor:
        """The noise of each image's number; the batch's seeds are those that it is of."""
        self.numbers = list(numbers)
        choices = [self._choice(image, number) for image, number in enumerate(numbers)]
        drawn = [own[number] for own, number in zip(self.seeds, numbers)]
        made, noise = self._first(drawn)
        self._take(drawn)  # what may fail is behind us: the seeds that are told are those that are drawn
        self.sampling.p.rng, self.sampling.choices = made, choices
        return noise

    def _choice(self, image: int, number: int | None) -> SeedChoice | None:
        """What is told of an image of which this noise is drawn, or nothing; None where its prompt names nothing to
        look for."""
        own = self.images[image]
        if not own.drafts[0].scores:
            return None
        return chosen(self.seeds[image], own, number, self.variation, self._pictures(image))

    def _pictures(self, image: int) -> dict[int, Any]:
        """What an image's drafts look like, where somebody wants to see them."""
        kept = self.pictures.setdefault(image, {})
        made = zip(self.seeds[image], self.images[image].drafts) if self.sampling.looking.drafts else ()
        for seed, one in made:
            if seed not in kept and (found := previews.picture(one.x0)) is not None:
                kept[seed] = found
        return dict(kept)

    def _seeds(self) -> list[int]:
        """The batch's, of which others are drafted."""
        p = self.sampling.p
        return [int(seed) for seed in (p.subseeds if self.variation else p.seeds)]

    def _first(self, seeds: Sequence[int]) -> tuple[Any, Tensor]:
        """What the host makes noise with, for other ``seeds``, and the first noise that it has made."""
        was, (own, sub) = self.sampling.p.rng, (seeds, self.sampling.p.rng.subseeds)
        if self.variation:
            own, sub = was.seeds, seeds
        made = rng.ImageRNG(
            was.shape, list(own), subseeds=sub, subseed_strength=was.subseed_strength,
            seed_resize_from_h=was.seed_resize_from_h, seed_resize_from_w=was.seed_resize_from_w,
        )  # fmt: skip
        return made, made.next() * self.strength

    def _take(self, drawn: Sequence[int]) -> None:
        """The batch's seeds are ``drawn`` from now on; what was asked for keeps its own list."""
        p = self.sampling.p
        name = "subseeds" if self.variation else "seeds"
        first = p.iteration * p.batch_size
        every = list(getattr(p, f"all_{name}"))
        every[first : first + len(drawn)] = drawn
        setattr(p, f"all_{name}", every)
        getattr(p, name)[: len(drawn)] = drawn  # the very list that the host goes on with


class Drafts:
    """The drafts of a batch, from ``noises``: ``[images, ...]`` of each candidate; they are kept in ``images``.

    A candidate is drafted for the whole batch, so that some images have more drafts than they want.
    """

    def __init__(
        self, sampling: SamplingPass, noises: Sequence[Tensor], images: Sequence[Noises], one_by_one: bool
    ) -> None:
        self.sampling = sampling
        self.noises = noises
        self.images = images
        self.one_by_one = one_by_one
        self.wanting: Sequence[Noises] = images
        """For which more drafts are made, until they want none."""
        self.failed: Exception | None = None
        self.guided_steps = 0
        """How many steps the run has, where guidance is to move it and its drafts alike; 0 where not."""

    @contextmanager
    def in_the_place_of_sampling(self, sampler: Any) -> Iterator[None]:
        """Inside, what ``sampler`` samples are the drafts, and what the host notes down of that is forgotten after."""
        p, state, func = self.sampling.p, shared.state, sampler.func
        noted, told = dict(p.extra_generation_params), state.textinfo
        refiner = p.refiner_checkpoint_info, p.refiner_switch_at

        def in_its_place(denoiser: Any, x: Tensor, *_: Any, **given: Any) -> Tensor:
            try:
                self._guided_or_not(denoiser, x, given, func)
            except Exception as error:  # the host is to end its sampling in order
                self.failed = error
            return x

        sampler.func = functools.update_wrapper(in_its_place, func)
        # A draft that switched would leave the run with the second model; Neo looks at where to switch alone.
        p.refiner_checkpoint_info = p.refiner_switch_at = None
        state.textinfo = "Attention Decoupling: drafts"
        try:
            yield
        finally:
            sampler.func, state.textinfo = func, told
            p.refiner_checkpoint_info, p.refiner_switch_at = refiner
            p.extra_generation_params.clear()
            p.extra_generation_params.update(noted)

    def _guided_or_not(self, denoiser: Any, x: Tensor, given: dict[str, Any], sample: Any) -> None:
        """Make them as the run will be, or where guidance fails all without it, as the run will be then. Those that are
        looked at one by one go without: what a draft tells by itself was learned of such."""
        own = self.sampling
        if not (self.images[0].drafts or self.one_by_one):
            self.guided_steps = own.steps_to_guide(sample, denoiser, given)
        reason = ""
        try:
            self._make(denoiser, x, given)
        except MoveFailed as failed:
            reason = reasons.explained(failed.__cause__ or failed, reasons.switched_on(own.p))
        if reason:  # outside of the handler, whose error holds on to the failed pass
            log.warning("Attention Decoupling drafts without guidance: %s", reason)
            own.p.comment(f"Attention Decoupling drafted without guidance: {reason}")
            give_back()
            self._make_unguided(range(len(self.images)), denoiser, x, given)
        elif self.guided_steps and not (shared.state.interrupted or shared.state.skipped):
            left_alone = [image for image, why in enumerate(own.left_alone) if why]
            if any(self.images[image].drafts[0].scores for image in left_alone):
                self._make_unguided(left_alone, denoiser, x, given)

    def _make_unguided(self, images: Sequence[int], denoiser: Any, x: Tensor, given: dict[str, Any]) -> None:
        """Make the drafts of these ``images`` anew, without guidance, which leaves them alone."""
        kept = {image: list(own.drafts) for image, own in enumerate(self.images) if image not in images}
        self.guided_steps = 0
        for own in self.images:
            own.drafts.clear()
        self._make(denoiser, x, given)
        for image, drafts in kept.items():
            self.images[image].drafts[:] = drafts

    def _make(self, denoiser: Any, x: Tensor, given: dict[str, Any]) -> None:
        own, count = self.sampling, len(self.noises)
        coarse = CoarseRun.of(own, denoiser, given, self.guided_steps)
        latents = FirstLatents(x, self.noises[0], denoiser.init_latent)
        first = not self.images[0].drafts
        if self.one_by_one:
            if first:
                self._count(1)
            while any(image.wants_draft for image in self.wanting):
                number = len(self.images[0].drafts)
                first_of_one = [latents.of(self.noises[number])]
                self._keep(self._of_group(denoiser, coarse, first_of_one, given, number / count, count))
            if first:
                shared.state.nextjob()
            return
        # The gradient of many takes much, which can only be tried where the memory that is left is known.
        one_by_one = own.rows_are_counted() or (coarse.is_moved and free(x.device) is None)
        at_once = 1 if one_by_one else max(1, MOST_ROWS // len(x))
        self._count(-(-count // at_once))

        def make(group: Sequence[int]) -> list[list[Draft]]:
            found = self._of_group(denoiser, coarse, [latents.of(self.noises[k]) for k in group], given)
            shared.state.nextjob()
            return found

        self._keep(in_groups(make, count, at_once))

    def _keep(self, made: Sequence[Sequence[Draft]]) -> None:
        """Of each candidate its images' drafts."""
        for drafts in made:
            for image, own in zip(self.images, drafts):
                image.drafts.append(own)

    def _count(self, groups: int) -> None:
        """In the host's progress each group of drafts is a job more, in this batch and in those that are to follow."""
        p = self.sampling.p
        if not getattr(p, "decouple_drafts_counted", False):
            p.decouple_drafts_counted = True
            shared.state.job_count += groups * self.sampling.batches

    def _of_group(
        self, denoiser: Any, coarse: CoarseRun, first: Sequence[Tensor], given: dict[str, Any], begun: float = 0.0,
        parts: int = 1,
    ) -> list[list[Draft]]:  # fmt: skip
        """Drafts of some candidates at once, whose latents ``[images, ...]`` are as the host gives them its sampler.

        They are one of so many ``parts`` of a job in the host's progress, of which ``begun`` is the share that is done.
        """
        own, count, images = self.sampling, len(first), len(first[0])
        args = _repeated(given["extra_args"], count)
        scale, sigmas, pooled, total = coarse.scale, coarse.sigmas, coarse.pooled, coarse.steps

        def come_to(sigma: float) -> None:
            done = scale.share_done(sigma)
            denoiser.step = int(done * denoiser.total_steps)
            shared.state.sampling_step = int((begun + done / parts) * denoiser.steps)
            own.beside.drafts += count * images

        def denoise(x: Tensor, sigma: float) -> Tensor:
            come_to(sigma)
            return scale.denoised(x, sigma, args)

        def move(x: Tensor, k: int) -> Tensor:
            if not pooled[k] or shared.state.interrupted or shared.state.skipped:
                return x
            come_to(sigmas[k])
            before = x / scale.to_sigma(sigmas[k])
            level, sigmas_given = scale.given(x, sigmas[k]), scale.timesteps is None
            moved = own.moved_draft(denoiser, before, level, args, sigmas_given, pooled[k], total, count)
            return x if moved is before else moved * scale.to_sigma(sigmas[k])

        reader = MapReader(coarse.reader.layers, [*coarse.reader.images] * count)
        x = torch.cat(list(first)) * scale.to_sigma(scale.first)
        with _repeated_picture(denoiser, count):
            made = draft(
                denoise, x, sigmas, own.unet(), reader, lambda: own.conditional_rows(denoiser, args, count * images),
                move if coarse.is_moved else None, images,
            )  # fmt: skip
        return [made[k * images : (k + 1) * images] for k in range(count)]


class FirstLatents:
    """What the host begins to sample with: of a noise and, in img2img, of the encoded picture so many times each.

    ``x`` is what it has made of ``noise``, both ``[images, ...]``. Raises Unsupported where that is not all it is of.
    """

    def __init__(self, x: Tensor, noise: Tensor, picture: Tensor | None) -> None:
        parts = [noise] if picture is None else [noise, picture.expand_as(noise)]
        columns = torch.stack([part.detach().cpu().double().flatten() for part in parts], dim=1)
        made = x.detach().cpu().double().flatten()
        factors = torch.linalg.lstsq(columns, made[:, None]).solution[:, 0]
        if not (made - columns @ factors).norm() <= MADE_OTHERWISE * made.norm():
            raise Unsupported(
                "another extension has changed the latents that sampling begins with, so those of other seeds aren't "
                "known"
            )
        self.x, self.noise, self.scale = x, noise, float(factors[0])

    def of(self, noise: Tensor) -> Tensor:
        """Those of another ``noise``."""
        return self.x + (noise - self.noise) * self.scale


class LatentScale:
    """From latents ``x = x0 + sigma n`` to those of a sampler's denoiser, and back."""

    def __init__(self, sampling: SamplingPass, denoiser: Any, given: dict[str, Any]) -> None:
        self.sampling, self.denoiser = sampling, denoiser
        self.timesteps = given.get("timesteps")
        if self.timesteps is not None:
            run = [float(own) for own in reversed(self.timesteps)]
        elif "sigmas" in given:
            run = [float(own) for own in given["sigmas"]]
        else:
            run = [float(given["sigma_max"])]
        self.is_flow = self.timesteps is None and sampling.unit(torch.tensor([run[0]])) is not None
        self.run = [self._level(own) for own in run]
        """The run's own noise levels."""
        self.first = self.run[0]

    def _level(self, own: float) -> float:
        return self.sampling.noise_level(self.denoiser, torch.tensor([own])) if own > 0 else 0.0

    def to_sigma(self, sigma: float) -> float:
        """What latents ``x`` are over the sampler's at this noise level."""
        if self.is_flow:
            return 1 + sigma
        return 1.0 if self.timesteps is None else math.sqrt(1 + sigma**2)

    def share_done(self, sigma: float) -> float:
        """How much of the run's steps lies before this noise level, where it is known: prompt editing goes by it."""
        if len(self.run) == 1:
            return 0.0 if sigma >= self.first else 0.5
        return sum(own > sigma * (1 + 1e-6) for own in self.run[:-1]) / (len(self.run) - 1)

    def given(self, x: Tensor, sigma: float) -> Tensor:
        """What the sampler gives its denoiser beside the rows ``x`` for this noise level, ``[rows]``."""
        own: float = sigma / (1 + sigma) if self.is_flow else sigma
        return x.new_ones(len(x)) * (own if self.timesteps is None else self._timestep(sigma))

    def denoised(self, x: Tensor, sigma: float, args: dict[str, Any]) -> Tensor:
        """The host's own prediction of x0."""
        own = self.denoiser(x / self.to_sigma(sigma), self.given(x, sigma), **args)
        return x - sigma * own if self.timesteps is not None else own

    def _timestep(self, sigma: float) -> int:
        """The last one whose noise level is not above ``sigma``."""
        low, high = 0, 999
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._level(middle) <= sigma * (1 + 1e-6) else (low, middle - 1)
        return low


class CoarseRun(NamedTuple):
    """What the drafts of a batch go through."""

    scale: LatentScale
    sigmas: list[float]
    """Noise levels of its passes."""
    pooled: list[list[int]]
    """Of each, the run's steps as which guidance moves it."""
    steps: int
    """How many the run has."""
    reader: MapReader
    """Of the batch's images, at the last pass."""

    @classmethod
    def of(cls, sampling: SamplingPass, denoiser: Any, given: dict[str, Any], guided_steps: int) -> CoarseRun:
        """``guided_steps``: how many steps the run has that guidance moves; 0 where it does not.

        Raises NothingToGuide where no prompt names anything at the last pass.
        """
        scale, cond = LatentScale(sampling, denoiser, given), given["extra_args"]["cond"]
        steps = guided_steps if len(scale.run) >= guided_steps else 0
        sigmas, pooled = passes(scale.first, scale.run[:steps], sampling.schedule)
        last = int(scale.share_done(sigmas[-1]) * denoiser.total_steps)
        reader = sampling.reader_to_tell(cond, last)
        if not reader.named:
            at_other_steps = (sampling.reader_to_tell(cond, step) for step in (0, denoiser.total_steps - 1))
            is_edited = any(other.named for other in at_other_steps)
            raise reasons.NothingToGuide(reasons.NOT_THERE_YET if is_edited else reasons.too_few((), "intensity"))
        return cls(scale, sigmas, pooled, steps, reader)

    @property
    def is_moved(self) -> bool:
        """Does guidance move any of its passes?"""
        return any(self.pooled)


@contextmanager
def _repeated_picture(denoiser: Any, count: int) -> Iterator[None]:
    """Inside, what an inpainting mask keeps is there for ``count`` times the images."""
    before = denoiser.init_latent
    if before is not None:
        denoiser.init_latent = torch.cat([before] * count)
    try:
        yield
    finally:
        denoiser.init_latent = before


def _repeated(args: dict[str, Any], count: int) -> dict[str, Any]:
    """What the sampler hands to the host's denoiser, for ``count`` times its images, one set behind the other."""
    if count == 1:
        return args
    cond, uncond, image_cond = args["cond"], args["uncond"], args["image_cond"]
    many = copy.copy(cond)
    many.batch, many.shape = list(cond.batch) * count, (len(cond.batch) * count,)
    more = {"cond": many, "uncond": None if uncond is None else list(uncond) * count}
    if isinstance(image_cond, Tensor):
        more["image_cond"] = torch.cat([image_cond] * count)
    return {**args, **more}
