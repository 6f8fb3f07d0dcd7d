"""Guidance around a WebUI's sampler: what AUTOMATIC1111 and its descendants share.

The hosts hand ``cfg_denoiser`` callbacks a copy of the latents, so the update is made one level out:
around the sampler's own function, before ``CFGDenoiser.forward``, in the storage that the sampler
goes on with. Only one sampler object and its denoiser are touched, and only while it samples.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from modules import paths_internal, prompt_parser, sd_samplers, shared
from torch import Tensor, nn

from ..core.gradient import LearnedInRun, LossScale, Pass
from ..core.host_pass import ConditionalRows
from ..core.maps import ContextMisfit, ImagePlan, MapReader
from ..core.observe import Observation, Observers
from ..core.presence import Curve, Presence
from ..core.schedule import Schedule
from ..core.trace import ImageTrace, KeptMaps, Tracer, kept
from ..prompt.align import Piece
from ..prompt.relations import choose_of_parts
from ..prompt.syntax import Dialect
from ..settings import DRAFTING, PRESENCE, Settings
from . import bystanders, curves, features, reasons
from .base import Looking, OwnPass, Session, make_guide, thrift
from .denoisers import cross_attention_layers, default_level
from .drafting import ChoosingSampler
from .insisting import InsistingSampler
from .ldm import main_calls, pieces, plan_image
from .reasons import Unsupported
from .seeds import ExtraPasses, SeedChoice
from .tell import Teller, reader_of

log = logging.getLogger("lib_decouple")


class CallbackRows(NamedTuple):
    """The rows of a denoiser's call, as the hosts hand them to ``cfg_denoiser`` callbacks."""

    x: Tensor
    image_cond: Tensor
    sigma: Tensor
    text_cond: Any
    text_uncond: Any


def tokens_of(clip: Any, text: str) -> list[Piece]:
    """:meth:`SamplingPass.tokenize` by a model's ``cond_stage_model``. Raises Unsupported where it has no chunks."""
    if not hasattr(clip, "process_texts"):
        raise Unsupported("this model has no text encoder that is known here; those of SD 1.x, 2.x, XL and Anima are")
    (chunks,), _ = clip.process_texts([text])
    # SDXL has two text encoders with the same chunks.
    encoder = next((one for one in (clip, *getattr(clip, "embedders", ())) if hasattr(one, "tokenizer")), None)
    if encoder is not None:
        return pieces(chunks, encoder.tokenizer.convert_ids_to_tokens)
    from modules.sd_hijack_open_clip import tokenizer

    return pieces(chunks, tokenizer.decoder.__getitem__)


def dialect(comments: bool = False) -> Dialect:
    """What the host's settings make of a prompt's signs; ``comments``: whether there may still be any in it."""
    emphasis = str(getattr(shared.opts, "emphasis", "Original"))
    try:
        from backend.text_processing import parsing
    except ImportError:
        pass
    else:
        # Forge reads the signs all the same, unless its parser is told.
        if emphasis == "None" and len(inspect.signature(parsing.parse_prompt_attention).parameters) == 1:
            emphasis = "Ignore"
    return Dialect(comments, emphasis, bool(getattr(shared.opts, "use_old_scheduling", False)))


class BrokenOff(BaseException):
    """Raised in the denoiser to end a sampling that is to be begun again; like the host's own for an interruption it is
    no Exception, and is caught before the host sees it."""


class GuidedSampler:
    """Stands in the place of a sampler's function until it is called, once."""

    def __init__(self, sampling: SamplingPass, sampler: Any) -> None:
        functools.update_wrapper(self, sampler.func)  # the hosts look at its name and its arguments
        self.sampling, self.sampler, self.sample = sampling, sampler, sampler.func

    def __call__(self, denoiser: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Sample as the host's own function does, guided."""
        self.sampler.func = self.sample
        # txt2img hands this very tensor to other scripts, and the update is made in place.
        with self.sampling.guiding(self.sample, denoiser, kwargs) as guided:
            try:
                return self.sample(denoiser, x.clone() if guided else x, *args, **kwargs)
            except BrokenOff:
                self.sampling.broken_off = True
                return self.sampler.last_latent  # as the host ends a sampling that is interrupted


class SamplingPass:
    """Guidance of one sampling pass of a batch; made in ``process_before_every_sampling``.

    :meth:`attach` changes nothing but ``p.sampler.func``, and that only until it has returned. A host's
    adapter says in a subclass what differs between the hosts.
    """

    def tokenize(self, text: str) -> list[Piece]:
        """The loaded model's tokens of ``text``, weights and BREAK understood, with their positions in the context."""
        raise NotImplementedError

    def unet(self) -> nn.Module:
        """The loaded model's denoiser network."""
        raise NotImplementedError

    def switch_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor) -> bool:
        """Make the host's refiner switch if it is due; was it made?"""
        raise NotImplementedError

    def conditional_pass(self, denoiser: Any, sigma: Tensor, given: dict[str, Any]) -> Pass:
        """The host's denoiser on the conditional rows alone, with the conds of this step.

        ``given``: what the sampler hands to ``CFGDenoiser.forward``.
        """
        raise NotImplementedError

    def conditional_rows(self, denoiser: Any, given: dict[str, Any], batch: int) -> ConditionalRows:
        """Which rows of the model's calls are conditional that the host is about to make for ``batch`` images."""
        raise NotImplementedError

    def callback_rows(self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> CallbackRows:
        """What the host is about to hand to ``cfg_denoiser`` callbacks, in tensors of its own."""
        raise NotImplementedError

    def noise_level(self, denoiser: Any, sigma: Tensor) -> float:
        """``sqrt((1 - alpha-bar) / alpha-bar)`` of a call of ``CFGDenoiser.forward``, which some samplers give a
        timestep instead."""
        raise NotImplementedError

    def unit(self, sigma: Tensor) -> Tensor | None:
        """For a rectified flow, what its latents are over those of the alpha-bar form, which the guide then moves."""
        return None

    def reserve(self, x: Tensor) -> None:
        """Tell the host's memory manager, where it has one, what the gradients will need on top of sampling ``x``."""

    def reserve_anew(self) -> None:
        """:meth:`reserve` for the model that has taken the first one's place."""

    def differentiable(self) -> AbstractContextManager[Any]:
        """Inside, gradients can be taken through the host's denoiser."""
        return nullcontext()

    def differentiable_as_it_is(self) -> AbstractContextManager[Any]:
        """:meth:`differentiable` where nothing of the host's is replaced: for its own pass."""
        return self.differentiable()

    def input_scale(self, denoiser: Any, sigma: Tensor) -> Tensor | float:
        """What the first channels of the network's input are over the latents' alpha-bar form, 0 outside a mask."""
        unit = self.unit(sigma)
        scale = 1.0 if unit is None else unit
        masked = denoiser.mask is not None and denoiser.mask_before_denoising
        return scale * denoiser.nmask if masked else scale

    def recomputing(self) -> AbstractContextManager[Any]:
        """Inside :meth:`differentiable`, what a block runs in that is computed twice."""
        return nullcontext()

    def attention_instead(self) -> AbstractContextManager[Any]:
        """Inside, the model's attention is one that passes a gradient on; asked for where the host's own does not."""
        return nullcontext()

    def __init__(self, p: Any, settings: Settings, looking: Looking | None = None) -> None:
        self.p, self.settings, self.looking = p, settings.fixed(), looking or Looking()
        self.iteration = p.iteration
        self.batches = p.n_iter - p.iteration
        """How many are drawn as this one is, it among them."""
        self.hires = bool(getattr(p, "is_hr_pass", False))
        self.choices: list[SeedChoice | None] = [None] * len(self._prompts())
        """Of each image, which of its drafts is drawn; None where none was made."""
        self.no_drafts = ""
        """Why nothing could be chosen, though it was asked for."""
        self.drew = True
        """Does the host sample a picture, or drafts alone?"""
        self.not_insisted = ""
        """Why a run is not begun again, or no draft accepted, though it was asked for."""
        self.seconds = 0.0
        """Of guidance, in runs that were given up, too."""
        self.beside = ExtraPasses()
        self.replaces: SamplingPass | None = None
        """The pass that was attached to the same sampling before: Forge calls the hook twice in hires fix."""
        self.schedule = Schedule(self.settings.steps, settings.every, self.settings.start)
        self._learned = LearnedInRun(thrift(self.settings))
        self._by_presence = self.settings.stop == PRESENCE
        self._moves = self.settings.gradient != "none"
        self._schedules: list[list[tuple[int, str]]] = []
        self._reserved_for: int | None = None
        self._begin()

    def _begin(self) -> None:
        """Nothing has been seen of the run yet."""
        self.traces = [ImageTrace(()) for _ in self._prompts()]
        self.left_alone = [""] * len(self.traces)
        """Why an image is not guided, though the others are."""
        self.stood_aside = ""
        """Why guidance ended early, or never began; empty while it works."""
        self.teller = Teller(len(self.traces), self.settings.look != "off")
        self.judge: Callable[[Sequence[Presence | None]], bool] | None = None
        """Asked once, when the run first tells how probably each entity is there: is it to be broken off?"""
        self.broken_off = False
        self.step, self.total = 0, 0
        """Where sampling is, and how many steps it will make; 0 before its first."""
        self.maps: dict[int, KeptMaps] = {}
        """Image of the batch -> its maps at the last step at which somebody wanted to see them."""
        self._observers = Observers(
            [Tracer(self.traces, keep_moments=self.looking.moments), self._show, self._seen_last]
        )
        self._session: Session | None = None
        self._planned: tuple[object, ...] = ()
        self._call = 0
        self._looked = False

    def begin_again(self) -> None:
        """Guide what ``p.sampler`` is about to sample from other noise; what this run has told is forgotten."""
        self.detach()  # its sampling may have failed before it began
        self.beside.given_up += self._call * len(self.traces)
        self.beside.guided += sum(trace.passes for trace in self.traces)
        self._learned.scale = LossScale()  # as a run has it that begins with this seed
        self._begin()
        self.p.sampler.func = GuidedSampler(self, self.p.sampler)

    def detach(self) -> None:
        """Guide nothing that ``p.sampler`` samples, which img2img keeps for all batches."""
        if isinstance(self.p.sampler.func, GuidedSampler):
            self.p.sampler.func = self.p.sampler.func.sample

    @property
    def exact_since(self) -> str:
        """From which step on, and why, gradients are exact though late ones were wanted; empty where they are not."""
        return self._learned.exact_since

    def attach(self, x: Tensor | None = None) -> None:
        """Guide what ``p.sampler`` is about to sample; ``x`` is like the latents, for an estimate of the memory."""
        sampler = self.p.sampler
        if isinstance(sampler.func, GuidedSampler):
            self.replaces, sampler.func = sampler.func.sampling, sampler.func.sample
        if x is not None and self._moves:
            try:
                cross_attention_layers(self.unet())
                self.reserve(x)
                self._reserved_for = id(shared.sd_model)
            except Exception as error:
                return self.stand_aside(self._explained(error))
        sampler.func = GuidedSampler(self, sampler)
        if self.settings.look in DRAFTING and not self.hires:
            (InsistingSampler if self.settings.look == "insist" else ChoosingSampler)(self).attach()

    def rows_are_counted(self) -> bool:
        """Is there what fits as many rows alone as the job has images, such as another extension's attention?"""
        return bool(bystanders.replaced_forwards(self.unet()))

    def curve(self) -> Curve | None:
        """What was learned of the loaded model."""
        return curve_of(shared.sd_model)

    def give_up_drafts(self, reason: str) -> None:
        """Draw the seed that was asked for, or nothing where drafts alone are wanted, and tell the user why."""
        self.no_drafts = reason
        log.warning("Attention Decoupling makes no drafts: %s", reason)
        done = "drew the seed that was asked for" if self.looking.draws else "drafted nothing, and nothing is drawn"
        self.p.comment(f"Attention Decoupling {done}: {reason}")

    @contextmanager
    def guiding(self, sample: Any, denoiser: Any, given: dict[str, Any]) -> Iterator[bool]:
        """Inside, ``denoiser`` is guided while the sampler's function ``sample``, given what it is given, calls it;
        gives whether it is."""
        if not self._moves:
            with self._hooked(denoiser, {}, False) if self.teller.waiting else nullcontext():
                yield False
            return
        try:
            name = getattr(sample, "__name__", str(sample))
            calls = main_calls(name, _schedule_length(name, denoiser, given))
        except Exception as error:
            self.stand_aside(self._explained(error))
            calls = {}
        if not self.stood_aside and (reason := reasons.no_guided_step(self.schedule, len(calls))):
            self.stand_aside(reason)
        if self.stood_aside and not self.teller.waiting:
            yield False
            return
        with self._hooked(denoiser, calls, "timesteps" not in given):
            yield not self.stood_aside

    def _explained(self, error: Exception) -> str:
        return reasons.explained(error, reasons.switched_on(self.p))

    def stand_aside(self, reason: str, logged: bool = False) -> None:
        """Leave the rest of this pass to the host, and tell the user why."""
        self.stood_aside = reason
        if not logged:
            log.warning("Attention Decoupling stands aside: %s", reason)
        self.p.comment(f"Attention Decoupling stood aside: {reason}")

    @contextmanager
    def _hooked(self, denoiser: Any, calls: dict[int, int], sigmas: bool) -> Iterator[None]:
        """``denoiser.forward`` is preceded by guidance inside."""
        before = vars(denoiser).get("forward")
        forward = denoiser.forward
        told: list[str] = []

        def guided(x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
            step = calls.get(self._call)
            self._call += 1
            if step is not None:
                self.step, self.total = step, len(calls)
            state = shared.state
            due = step is not None and self._due(step, len(calls))
            tells = self._tells(denoiser, sigma)
            if not (due or tells) or state.interrupted or state.skipped:
                return forward(x, sigma, **kwargs)
            started = time.perf_counter()
            try:
                if self.switch_refiner(denoiser, x, sigma):
                    # Made now rather than inside forward: guidance must see the new model.
                    fresh = denoiser.sampler.sampler_extra_args
                    kwargs = {**kwargs, "cond": fresh["cond"], "uncond": fresh["uncond"]}
                if step is not None and due:
                    self._guide(denoiser, x, sigma, kwargs, step, len(calls), sigmas)
            except Exception as error:
                log.debug("guidance failed", exc_info=True)
                self.stand_aside(self._explained(error))
            finally:
                self.seconds += time.perf_counter() - started
            with ExitStack() as beside:
                if step is not None and due:
                    beside.enter_context(self._looking_on(denoiser, x, sigma, kwargs, step, len(calls)))
                if tells:
                    beside.enter_context(self._telling(denoiser, x, sigma, kwargs))
                made = forward(x, sigma, **kwargs)
                started = time.perf_counter()
            if tells and self._is_to_break_off():
                raise BrokenOff
            self.seconds += time.perf_counter() - started
            if self.exact_since and not told:
                told.append(self.exact_since)
                self.p.comment(f"Attention Decoupling: {self.exact_since}")
            return made

        denoiser.forward = guided
        try:
            yield
        finally:
            if before is None:
                del denoiser.forward
            else:
                denoiser.forward = before
            self._session = None

    def _due(self, step: int, total: int) -> bool:
        """Is there anything to do at this step?"""
        waiting = bool(self._session and self._session.waiting)
        return (
            not self.stood_aside
            and self._moves
            and (waiting or self.schedule.guided(step, total) or self._look_due(step, total))
        )

    def _look_due(self, step: int, total: int) -> bool:
        """Is this step to be looked at, though it moves nothing? The first behind the last guided one is, and that at
        the beginning where its maps are wanted."""
        guided_any = any(trace.steps for trace in self.traces)
        guided_any = guided_any or bool(self._session and self._session.waiting)
        last = step >= self.schedule.window(total) and guided_any and not self._looked
        return last or (step == 0 and self.looking.moments)

    def _guide(
        self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any], step: int, total: int, sigmas: bool
    ) -> None:
        """Move ``x`` in place, as the settings say for this step."""
        session = self._prepare(denoiser, given["cond"])
        if not (self.schedule.guided(step, total) or session.waiting):
            return
        if session.goes_by_itself(step, total):
            with_others: AbstractContextManager[Any] = nullcontext()
        else:
            with_others = self._beside_others(denoiser, x, sigma, given)

        def move(latents: Tensor, run: Pass, level: Tensor | None, noise: float) -> Tensor:
            return session.before_step(latents, step, total, run, level, noise)

        with with_others, self.differentiable():
            moved = self._moved(denoiser, x, sigma, given, sigmas, move)
        if session.stood_aside:
            return self.stand_aside(session.stood_aside, logged=True)
        if moved is not x:
            with torch.no_grad():
                x.copy_(moved)

    def _moved(
        self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any], sigmas: bool,
        move: Callable[[Tensor, Pass, Tensor | None, float], Tensor],
    ) -> Tensor:  # fmt: skip
        """The sampler's latents ``x`` behind ``move``, outside a mask as they are; ``x`` itself where nothing moved.

        ``move`` is given the latents that a guide moves, the pass on them, :meth:`StepRule.update`'s ``sigma`` and the
        noise level.
        """
        run = self.conditional_pass(denoiser, sigma, given)
        latents, unit = x.detach().clone(), self.unit(sigma)
        noise = self.noise_level(denoiser, sigma) if self._by_presence else math.inf
        if unit is not None:
            z = latents / unit
            after = move(z, lambda z, images: run(z * unit, images), None, noise)
            # Not after * unit: what did not move keeps its last bit.
            moved = latents if after is z else latents + (after - z) * unit
        else:
            moved = move(latents, run, sigma.reshape(-1)[0] if sigmas else None, noise)
        if moved is latents:
            return x
        return moved if denoiser.mask is None else x + (moved - x) * denoiser.nmask

    def steps_to_guide(self, sample: Any, denoiser: Any, given: dict[str, Any]) -> int:
        """How many steps the run has that is to follow, if guidance is to move it; 0 where it is not."""
        if not self._moves or self.stood_aside:
            return 0
        name = getattr(sample, "__name__", str(sample))
        try:
            total = len(main_calls(name, _schedule_length(name, denoiser, given)))
        except Exception:  # told where the run itself is to be guided
            log.debug("drafts without guidance", exc_info=True)
            return 0
        return 0 if reasons.no_guided_step(self.schedule, total) else total

    def moved_draft(
        self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any], sigmas: bool, steps: Sequence[int],
        total: int, count: int,
    ) -> Tensor:  # fmt: skip
        """The latents ``x`` of ``count`` candidates for the batch, one set behind the other, moved as far as a run of
        ``total`` steps would be at ``steps``. Raises what hinders it."""
        guide = self._prepare(denoiser, given["cond"]).guide
        guide = guide.of([*guide.gradient.reader.images] * count)

        def move(latents: Tensor, run: Pass, level: Tensor | None, noise: float) -> Tensor:
            return guide.drafted(latents, steps, total, run, level, noise)

        with self._beside_others(denoiser, x, sigma, given), self.differentiable():
            return self._moved(denoiser, x, sigma, given, sigmas, move)

    def _looking_on(
        self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any], step: int, total: int
    ) -> AbstractContextManager[None]:
        """Inside, the host makes its own pass of this step, and whoever wants to see something of it does."""
        if self.stood_aside or self._session is None:
            return nullcontext()

        def rows() -> ConditionalRows:
            return self.conditional_rows(denoiser, given, len(x))

        own = OwnPass(self.differentiable_as_it_is, lambda: self.input_scale(denoiser, sigma))
        return self._session.beside_host(x.shape, step, total, rows, own)

    def _tells(self, denoiser: Any, sigma: Tensor) -> bool:
        """Is the host's pass at ``sigma`` one to read, to tell which entity is there?"""
        if not self.teller.waiting:
            return False
        try:
            return self.teller.due(self.noise_level(denoiser, sigma))
        except Exception as error:
            self.teller.give_up(self._explained(error))
            return False

    def _is_to_break_off(self) -> bool:
        """Was a chance told at last, and does whoever waits for one want another run?"""
        judge, told = self.judge, self.teller.told
        if judge is None or not any(one.chances for one in told if one):
            return False
        self.judge = None
        try:
            return judge(told)
        except Exception as error:
            self.not_insisted = self._explained(error)
            return False

    def _telling(self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> AbstractContextManager[None]:
        """Inside, the host makes its own pass, and what is there is read off it."""
        try:
            return self.teller.beside_host(
                self.noise_level(denoiser, sigma), x.shape[-2:], self.unet(),
                self.reader_to_tell(given["cond"], denoiser.step),
                lambda: self.conditional_rows(denoiser, given, len(x)), self.curve(), self._explained,
            )  # fmt: skip
        except Exception as error:
            self.teller.give_up(self._explained(error))
            return nullcontext()

    def reader_to_tell(self, cond: Any, step: int) -> MapReader:
        """What is read, to tell which entity is there, of the host's pass at a denoiser ``step``."""
        unet, texts = self.unet(), zip(*self._texts(cond, step))
        plans = [self._plan_to_tell(now, ever, weights) for (now, ever), weights in zip(texts, self._weights())]
        return reader_of(cross_attention_layers(unet), plans, default_level(unet))

    def _plan_to_tell(self, texts: Sequence[str], others: Sequence[str], weights: Sequence[float]) -> ImagePlan:
        """What is looked for in an image: what guidance would keep apart, and an entity that stands alone, too."""
        try:
            return plan_image(texts, self.settings.entities, self.tokenize, others, True, weights, dialect())
        except ValueError:
            return ImagePlan((), len(texts))

    def _weights(self) -> list[list[float]]:
        """Of each image's AND parts."""
        indexes, _, _ = prompt_parser.get_multicond_prompt_list(self._prompts())
        return [[weight for _, weight in image] for image in indexes]

    @contextmanager
    def _beside_others(self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> Iterator[None]:
        """Inside, extensions that have replaced the attention are as in the host's own pass; after, as before."""

        def callbacks() -> list[Any]:
            from modules import script_callbacks

            return [one.callback for one in script_callbacks.ordered_callbacks("cfg_denoiser")]

        def params() -> Any:
            from modules import script_callbacks

            state, rows = shared.state, self.callback_rows(denoiser, x, sigma, given)
            return script_callbacks.CFGDenoiserParams(
                rows.x, rows.image_cond, rows.sigma, state.sampling_step, state.sampling_steps,
                rows.text_cond, rows.text_uncond, denoiser,
            )  # fmt: skip

        with bystanders.put_back(self.unet()):
            bystanders.made_ready(callbacks, self.unet(), params)
            yield

    def _show(self, seen: Observation) -> None:
        """The observer that keeps a step's maps for whoever watches."""
        if self.looking.live():
            self.maps = {**self.maps, seen.image: kept(seen.step, seen.names, seen.maps)}

    def _seen_last(self, seen: Observation) -> None:
        """The observer that remembers that the maps behind the last guided step were seen."""
        self._looked = self._looked or not (seen.guided or seen.step < self.schedule.window(self.total))

    def _prepare(self, denoiser: Any, cond: Any) -> Session:
        """The session with a guide for the model and the prompts of this very step."""
        now, ever = self._texts(cond, denoiser.step)
        planned = (id(shared.sd_model), now)
        if self._session is None or planned != self._planned:
            if self._reserved_for not in (None, planned[0]):
                self._reserved_for = planned[0]
                self.reserve_anew()
            unet = self.unet()
            layers = cross_attention_layers(unet)
            plans = [self._plan(i, *image) for i, image in enumerate(zip(now, ever, self._weights()))]
            if now == ever and all(self.left_alone):
                raise reasons.NothingToGuide("; ".join(dict.fromkeys(self.left_alone)))
            state = shared.state
            guide = make_guide(
                self.settings, unet, layers, plans, default_level(unet),
                recomputing=self.recomputing, attention_instead=self.attention_instead,
                interrupted=lambda: state.interrupted or state.skipped, learned=self._learned,
                curve=self.curve() if self._by_presence else None,
            )  # fmt: skip
            for trace, plan in zip(self.traces, plans):
                trace.entities = tuple(dict.fromkeys((*trace.entities, *plan.names)))
            self._session, self._planned = (
                Session(
                    guide,
                    self.looking,
                    looks=self._look_due,
                    active=lambda: reasons.switched_on(self.p),
                    observers=self._observers,
                    waiting=self._session.waiting if self._session else None,
                ),
                planned,
            )
        return self._session

    def _plan(self, index: int, texts: Sequence[str], others: Sequence[str], weights: Sequence[float]) -> ImagePlan:
        """An image's plan, empty where its prompt leaves nothing to guide."""
        settings, own = self.settings, dialect()
        self.left_alone[index] = ""
        try:
            plan = plan_image(texts, settings.entities, self.tokenize, others, settings.skip_missing, weights, own)
        except ValueError as error:
            self.left_alone[index] = self._explained(error)
            return ImagePlan((), len(texts))
        if reasons.too_few(plan.names, settings.loss):
            left_out = "" if settings.entities else choose_of_parts(texts, weights, own)[1].why()
            self.left_alone[index] = reasons.too_few(plan.names, settings.loss, left_out)
            return ImagePlan((), len(texts))
        return plan

    def _prompts(self) -> list[str]:
        return list(self.p.hr_prompts if self.hires else self.p.prompts)

    def _texts(self, cond: Any, step: int) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
        """The texts of each image's AND parts at a denoiser ``step``, and those at any step."""
        indexes, flat, _ = prompt_parser.get_multicond_prompt_list(self._prompts())
        if not self._schedules:
            p, hires_steps = self.p, None
            if self.hires:
                config = sd_samplers.find_sampler_config(p.hr_sampler_name or p.sampler_name)
                hires_steps = config.total_steps(p.hr_second_pass_steps or p.steps)
            self._schedules = features.call(
                prompt_parser.get_learned_conditioning_prompt_schedules, flat, p.firstpass_steps, hires_steps,
                use_old_scheduling=getattr(shared.opts, "use_old_scheduling", False),
            )  # fmt: skip
        now, ever = [], []
        for own, conds in zip(indexes, cond.batch):
            texts = []
            for (index, _), composed in zip(own, conds):
                ends = [entry.end_at_step for entry in composed.schedules]
                if ends != [end for end, _ in self._schedules[index]]:
                    raise ContextMisfit("the conds do not fit the prompt; another extension changed one of them")
                current = next((k for k, end in enumerate(ends) if step <= end), 0)
                texts.append(self._schedules[index][current][1])
            now.append(tuple(texts))
            ever.append(tuple(text for index, _ in own for _, text in self._schedules[index]))
        return tuple(now), tuple(ever)


def curve_of(model: Any) -> Curve | None:
    """What was learned of the loaded ``model``, known by its hash, unless the host reckons none."""
    digest = getattr(getattr(model, "sd_checkpoint_info", None), "sha256", None)
    return curves.find(str(digest or ""), Path(paths_internal.data_path) / "attention-decoupling" / "curves")


def _schedule_length(sampler: str, denoiser: Any, kwargs: dict[str, Any]) -> int:
    """Steps that the sampler's function is really about to make."""
    if "timesteps" in kwargs:
        # UniPC evaluates every timestep; the others go from one to the next.
        return len(kwargs["timesteps"]) - (sampler != "unipc")
    if "sigmas" in kwargs:
        return len(kwargs["sigmas"]) - 1
    return int(kwargs.get("n", denoiser.steps))
