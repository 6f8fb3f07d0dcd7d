"""What every host adapter shares: from settings to a guide, and standing aside when something fails."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from ..core import memory
from ..core.finite_differences import MISFIT, misfit, slopes_of
from ..core.gradient import Context, LearnedInRun, LossGradient, Pass
from ..core.gradient import rows as rows_of
from ..core.guidance import Guide, Refinement, WaitingUpdate
from ..core.host_pass import ConditionalRows, HostPass, reading_beside
from ..core.late import differentiated_beside
from ..core.losses import WeightedLoss
from ..core.maps import CrossAttentionLayer, ImagePlan, MapReader, Part
from ..core.memory import Thrift, is_out_of_memory
from ..core.observe import Observation, Observers
from ..core.presence import Curve, Helping
from ..core.schedule import Schedule, StepRule
from ..settings import PRESENCE, Settings
from . import reasons

log = logging.getLogger("lib_decouple")


@dataclass(frozen=True)
class Level:
    """Where the maps of a model family are read when the user does not say."""

    factor: int
    part: Part = "all"


def unet_level(layers: Sequence[CrossAttentionLayer]) -> Level:
    """Where a UNet's maps are read when the user does not say: a quarter of the latents' side [F: 16x16 at 512 px on
    SD 1.x, 2.x; 32x32 at 1024 px on SDXL]. A model that has no such level, as the embedded one, is read at its
    finest, 16x16 there, which alone localises well (`study layers`)."""
    factors = {layer.factor for layer in layers}
    return Level(4 if 4 in factors else min(factors, default=4))


def choose_layers(
    layers: Sequence[CrossAttentionLayer], factor: int, part: str, default: Level
) -> list[CrossAttentionLayer]:
    """The layers at one downsampling factor, on one path of the denoiser.

    A ``factor`` of 0 takes the default's, or the nearest one that the model has; a ``part`` of "auto"
    the default's. Raises ValueError when there are none, naming those that exist.
    """
    there = sorted({layer.factor for layer in layers})
    if not there:
        raise ValueError("layers: this model has no cross-attention that can be read")
    if factor and factor not in there:
        raise ValueError(f"factor: {factor} is not allowed; this model has {', '.join(map(str, there))}")
    wanted = factor or min(there, key=lambda f: (abs(f - default.factor), f))
    level = [layer for layer in layers if layer.factor == wanted]
    part = default.part if part == "auto" else part
    if part == "last":
        return level[-1:]
    if part == "early":
        first = next((layer.transformer for layer in level if layer.part == "up"), None)
        return [layer for layer in level if layer.part != "up" or layer.transformer == first]
    chosen = [layer for layer in level if part in ("all", layer.part)]
    if not chosen:
        parts = ", ".join(sorted({layer.part for layer in level}))
        raise ValueError(
            f"layers: {part!r} is not allowed; at factor {wanted} this model has all, early, last, {parts}"
        )
    return chosen


def make_guide(
    settings: Settings,
    model: nn.Module,
    layers: Sequence[CrossAttentionLayer],
    images: Sequence[ImagePlan],
    default: Level,
    pick: Callable[[list[CrossAttentionLayer]], list[CrossAttentionLayer]] = list,
    recomputing: Context = nullcontext,
    attention_instead: Context | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    learned: LearnedInRun | None = None,
    curve: Curve | None = None,
) -> Guide:
    """A guide as the settings say, for one sampling run.

    ``layers`` are all of the model's; ``pick`` chooses among those of the level that the settings name.
    ``attention_instead``: inside, the host's attention is one that passes a gradient on. ``learned`` is what this
    run has learned before. ``curve``: what was learned of the checkpoint's presence scores. Raises ValueError as
    :func:`choose_layers` does, and where "stop" goes by presence but nothing that is read tells of it.
    """
    settings = settings.fixed()
    helping = _helping(settings, layers, default, curve) if settings.stop == PRESENCE else None
    chosen = pick(choose_layers(layers, settings.factor, settings.layers, default))
    schedule = Schedule(settings.steps, settings.every, settings.start)
    gradient = LossGradient(
        model,
        MapReader(chosen, images, settings.treatment, settings.combine),  # type: ignore[arg-type]
        WeightedLoss.parse(settings.loss),
        learned or LearnedInRun(thrift(settings)),
        recomputing,
        attention_instead,
        layers=layers,
    )
    return Guide(
        gradient,
        schedule,
        StepRule(settings.rule, settings.size),  # type: ignore[arg-type]
        Refinement(settings.refine_steps, settings.refine_threshold, settings.refine_rounds),
        settings.stop_below if settings.stop == "on" else None,
        interrupted=interrupted,
        late=settings.gradient == "late",
        helping=helping,
    )


def _helping(settings: Settings, layers: Sequence[CrossAttentionLayer], default: Level, curve: Curve | None) -> Helping:
    """Raises ValueError where presence can't be told from what guidance reads."""
    told = "stop: 'presence' is not possible"
    if curve is None:
        raise ValueError(reasons.NO_CURVE_TO_STOP)
    own = choose_layers(layers, settings.factor, settings.layers, default)
    if own != choose_layers(layers, 0, "auto", default) or (settings.treatment, settings.combine) != ("raw", "mean"):
        raise ValueError(f"{told} with another factor, layers, treatment or combine than the model's own; off or on")
    return Helping(curve)


def thrift(settings: Settings) -> Thrift:
    """How a run begins with its memory, as the settings say."""
    return Thrift(settings.one_at_a_time, settings.recompute == "on", settings.recompute != "off")


@dataclass(frozen=True)
class Looking:
    """What is wanted of a run beside its images."""

    after: bool = False
    """Measure each update's effect."""
    moments: bool = False
    """Keep the maps of three moments: at the first step before anything was moved, behind the first guided step's
    update, and behind the last one's."""
    live: Callable[[], bool] = lambda: False
    """Does anybody want to see the maps of this step? Asked at each."""
    drafts: bool = False
    """Keep what drafts look like."""
    draws: bool = True
    """Draw a picture behind its drafts."""
    doubts: Callable[[str], None] | None = None
    """Hold the run's first gradient against finite differences, and tell this where they disagree."""
    examine: Callable[[LossGradient, Tensor, int, Pass], bool] | None = None
    """Called with the latents, the step and the pass of each guided step, in the place of what would move them; gives
    whether a gradient is to be taken of the host's own pass of the step, as a late one is."""

    def behind(self, schedule: Schedule) -> Callable[[int, int], bool]:
        """Of a step and their number, is a look behind its update wanted? One that no step follows shows the last."""

        def wanted(step: int, total: int) -> bool:
            place, count = schedule.place(step, total)
            only_here = place == 0 or (place == count - 1 and schedule.window(total) == total)
            return self.after or (self.moments and only_here)

        return wanted


@dataclass(frozen=True)
class OwnPass:
    """How a host's own pass is differentiated."""

    within: Context = nullcontext
    """Inside, gradients can be taken through the denoiser as the host has it."""
    scale: Callable[[], Tensor | float] = lambda: 1.0
    """What the first channels of the denoiser's input are over the scaled latents (alpha-bar form), broadcast to
    ``[batch, channels, ...]``: 1 but for flows, outside a mask, and for models with a ``sigma_data`` of their own."""


@dataclass
class Session:
    """A guide that never costs the host its image: after a failure it stands aside for the rest of the run.

    ``looks(step, total)``: are the maps of a step wanted at which nothing moves? With ``moves`` off none does.
    What is seen of a step is shown to the observers when the host's own pass of the step is over, as that shows what
    is behind an update.
    """

    guide: Guide
    looking: Looking = field(default_factory=Looking)
    looks: Callable[[int, int], bool] = lambda step, total: False
    moves: bool = True
    active: Callable[[], Sequence[str]] = tuple
    """Titles of what else is switched on in the job, for the reason of a failure."""
    observers: Observers = field(default_factory=Observers)
    stood_aside: str = field(default="", init=False)
    """Why guidance ended early; empty while it works."""
    waiting: WaitingUpdate | None = None
    """A late gradient that waits for the next step's latents."""
    _late: bool = field(default=False, init=False)
    """Is the gradient of the step at hand that of the host's own pass?"""
    _noise: float = field(default=math.inf, init=False)
    """The noise level of the step at hand."""
    _late_proved: bool = field(default=False, init=False)
    _verified: bool = field(default=False, init=False)
    unread: str = field(default="", init=False)
    """Why the host's own passes are no longer looked at; empty while they can be."""
    _seen: list[Observation] = field(default_factory=list, init=False)
    """At the step that the host is about to make."""

    def before_step(
        self,
        latents: Tensor,
        step: int,
        total: int,
        run: Pass,
        sigma: Tensor | None = None,
        noise: float = math.inf,
    ) -> Tensor:
        """:meth:`Guide.step`'s latents, or those that came when it fails or has failed before.

        A late gradient's update is made first, and stays. A step whose own gradient is to be late moves nothing more.
        """
        self._seen, self._late, self._noise = [], False, noise
        if self.stood_aside or not (self.moves or self.looking.examine):
            return latents
        try:
            waiting, self.waiting = self.waiting, None
            if self.looking.examine is not None:
                self._late = self.looking.examine(self.guide.gradient, latents, step, run)
                return latents
            if waiting:
                latents = self.guide.moved(latents, waiting, sigma)
                self._show(waiting.seen)
            if self.guide.schedule.guided(step, total):
                self._verify(latents, step, run)
                self._late = self._is_late(latents, step, total)
            if self._late:
                return latents
            moved, self._seen = self.guide.step(latents, step, total, run, sigma, noise)
            return moved
        except Exception as error:
            if is_out_of_memory(error):
                reason = f"out of memory; try {self._what_is_left()}"
            else:
                reason = reasons.explained(error, self.active())
        self.stood_aside = f"at step {step + 1} of {total}: {reason}"
        log.warning("Attention Decoupling stands aside %s", self.stood_aside)
        return latents

    def goes_by_itself(self, step: int, total: int) -> bool:
        """Does this step need no pass but the host's own?"""
        guided = self.guide.schedule.guided(step, total)
        return not guided or (self.guide.late and not self.exact_since and self.guide.can_wait(step, total))

    def _is_late(self, latents: Tensor, step: int, total: int) -> bool:
        """Is this guided step's gradient to be that of the host's own pass?"""
        if not self.guide.late or self.exact_since or not self.guide.can_wait(step, total):
            return False
        source = self.guide.gradient
        if not source.learned.foreseen and not source.late_fits(latents, source.reader.named):
            self._be_exact(step, total, "a gradient of the sampler's own pass would not fit into the free memory")
        source.foresee(latents, source.reader.named)
        if source.learned.thrift.recompute or source.learned.thrift.one_at_a_time:
            self._be_exact(step, total, "memory is saved, which a gradient of the sampler's own pass cannot")
        return not self.exact_since

    @property
    def exact_since(self) -> str:
        """See :class:`LearnedInRun`."""
        return self.guide.gradient.learned.exact_since

    def _be_exact(self, step: int, total: int, reason: str) -> None:
        since = f"the gradient is exact from step {step + 1} of {total} on: {reason}"
        self.guide.gradient.learned.exact_since = since
        log.warning("Attention Decoupling: %s", since)

    def _verify(self, latents: Tensor, step: int, run: Pass) -> None:
        """Once, where that is wanted: is the first image's gradient what its loss does when the latents are moved?"""
        source, images = self.guide.gradient, self.guide.gradient.reader.named[:1]
        if self.looking.doubts is None or self._verified or not images:
            return
        self._verified = True
        own = latents[images]
        try:
            off = misfit(slopes_of(source, own, images, run, source(own, images, run).gradient))
        except Exception as error:  # guidance itself will tell of what it cannot do
            log.warning("Attention Decoupling: no finite differences at step %d: %r", step + 1, error)
            return
        log.debug("finite differences at step %d: %.3f of the slopes are not as the gradient predicts", step + 1, off)
        if not off <= MISFIT:
            doubt = (
                f"The gradient does not fit what the loss does: {100 * off:.0f} % of its slopes are not as it predicts "
                f"at step {step + 1}. Something cuts it; please report this with what “Check this machine” says."
            )
            log.warning("Attention Decoupling: %s", doubt)
            self.looking.doubts(doubt)

    def wanted(self, step: int, total: int) -> list[int]:
        """The images whose maps are to be read off the host's own pass at this step."""
        if self.stood_aside or self.unread:
            return []
        if self._seen:
            behind = self.looking.behind(self.guide.schedule)(step, total)
            return [seen.image for seen in self._seen if seen.after is None and behind]
        return self.guide.gradient.reader.named if self.looks(step, total) else []

    @contextmanager
    def beside_host(
        self,
        latents: Sequence[int],
        step: int,
        total: int,
        rows: Callable[[], ConditionalRows],
        own: OwnPass = OwnPass(),
    ) -> Iterator[None]:
        """Inside, the host makes its own pass of a step on ``latents`` of this shape; behind it the observers are shown
        what was seen. No failure of this gets out."""
        if self._late:
            with self._differentiated(latents, step, total, rows, own):
                yield
            return
        size, images, found = latents[-2:], self.wanted(step, total), dict[int, Tensor]()
        gradient = self.guide.gradient
        beside: AbstractContextManager[HostPass | None] = (
            reading_beside(gradient.model, gradient.reader, rows) if images else nullcontext()
        )
        try:
            with beside as passed:
                yield
            found = self._maps_of(passed, size, images)
        finally:
            self.show(step, found)

    @contextmanager
    def _differentiated(
        self, latents: Sequence[int], step: int, total: int, rows: Callable[[], ConditionalRows], own: OwnPass
    ) -> Iterator[None]:
        """:meth:`beside_host` where the host's pass leaves a gradient."""
        guide, named = self.guide, self.guide.look_for(self._noise)
        if not named:
            yield
            return
        with differentiated_beside(guide.gradient, rows, own.within, self._late_proved) as late:
            yield
        failed = ""
        try:
            images, found = late.take(latents[-2:], latents[1], named)
            scale = own.scale()
            if isinstance(scale, Tensor) and scale.ndim == len(latents) and len(scale) > 1:
                scale = rows_of(scale, images)
            found = found._replace(gradient=found.gradient * scale)
            self.waiting = guide.waiting(step, total, images, found, self._noise)
            self._late_proved = late.proved
        except Exception as error:
            failed = reasons.explained(error, self.active())
        late.drop()
        if failed:
            memory.give_back()  # behind the except clause, as the exception's frames hold the pass's tensors
            self._be_exact(step + 1, total, failed)

    def _maps_of(self, passed: HostPass | None, size: Sequence[int], images: Sequence[int]) -> dict[int, Tensor]:
        try:
            return passed.maps(size, images) if passed else {}
        except Exception as error:
            self._unreadable(error)
            return {}

    def _unreadable(self, error: Exception) -> None:
        self.unread = reasons.explained(error, self.active())
        log.warning("Attention Decoupling can't read the maps off the sampler's own pass: %s", self.unread)

    def show(self, step: int, maps: Mapping[int, Tensor] = MappingProxyType({})) -> None:
        """To the observers: what this step did, with what the host's own pass told of it; ``maps``: image ->
        ``[entities, h, w]``."""
        try:
            for seen in self._seen:
                seen.after = maps.get(seen.image, seen.after)
            self._show(self._seen or self.guide.unmoved(step, maps))
        except Exception as error:
            self._unreadable(error)
        self._seen = []

    def _show(self, seen: Sequence[Observation]) -> None:
        for one in seen:
            self.observers.show(one)

    def _what_is_left(self) -> str:
        """What a user can still do about the memory, of which guidance has tried what the settings allow."""
        allowed = self.guide.gradient.learned.thrift.may_recompute
        return ("" if allowed else "“Save memory”, ") + "fewer pixels, or a coarser map level"
