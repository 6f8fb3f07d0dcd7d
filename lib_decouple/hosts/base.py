"""What every host adapter shares: from settings to a guide, and standing aside when something fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from ..core.finite_differences import MISFIT, misfit, slopes_of
from ..core.gradient import Context, Learned, LossGradient, Pass
from ..core.guidance import Guide, Refinement
from ..core.host_pass import ConditionalRows, HostPass, reading_beside
from ..core.losses import WeightedLoss
from ..core.maps import CrossAttentionLayer, ImagePlan, MapReader, Part
from ..core.memory import Thrift, is_out_of_memory
from ..core.observe import Observation, Observers
from ..core.schedule import Schedule, StepRule
from ..settings import Settings
from . import reasons

log = logging.getLogger("lib_decouple")


@dataclass(frozen=True)
class Level:
    """Where the maps of a model family are read when the user does not say."""

    factor: int
    part: Part = "all"


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
    chosen = [layer for layer in level if part in ("all", layer.part)]
    if not chosen:
        parts = ", ".join(sorted({layer.part for layer in level}))
        raise ValueError(f"layers: {part!r} is not allowed; at factor {wanted} this model has all, last, {parts}")
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
    learned: Learned | None = None,
) -> Guide:
    """A guide as the settings say, for one sampling run.

    ``layers`` are all of the model's; ``pick`` chooses among those of the level that the settings name.
    ``attention_instead``: inside, the host's attention is one that passes a gradient on. ``learned`` is what this
    run has learned before. Raises ValueError as :func:`choose_layers` does.
    """
    settings = settings.fixed()
    chosen = pick(choose_layers(layers, settings.factor, settings.layers, default))
    schedule = Schedule(settings.steps, settings.every, settings.start)
    gradient = LossGradient(
        model,
        MapReader(chosen, images, settings.treatment, settings.combine),  # type: ignore[arg-type]
        WeightedLoss.parse(settings.loss),
        learned or Learned(thrift(settings)),
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
    )


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
    doubts: Callable[[str], None] | None = None
    """Hold the run's first gradient against finite differences, and tell this where they disagree."""
    examine: Callable[[LossGradient, Tensor, int, Pass], None] | None = None
    """Called with the latents, the step and the pass of each guided step, in the place of what would move them."""

    def behind(self, schedule: Schedule) -> Callable[[int, int], bool]:
        """Of a step and their number, is a look behind its update wanted? One that no step follows shows the last."""

        def wanted(step: int, total: int) -> bool:
            place, count = schedule.place(step, total)
            only_here = place == 0 or (place == count - 1 and schedule.window(total) == total)
            return self.after or (self.moments and only_here)

        return wanted


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
    _verified: bool = field(default=False, init=False)
    unread: str = field(default="", init=False)
    """Why the host's own passes are no longer looked at; empty while they can be."""
    _seen: list[Observation] = field(default_factory=list, init=False)
    """At the step that the host is about to make."""

    def before_step(self, latents: Tensor, step: int, total: int, run: Pass, sigma: Tensor | None = None) -> Tensor:
        """:meth:`Guide.step`'s latents, or those that came when it fails or has failed before."""
        self._seen = []
        if self.stood_aside or not (self.moves or self.looking.examine):
            return latents
        try:
            if self.looking.examine is not None:
                self.looking.examine(self.guide.gradient, latents, step, run)
                return latents
            if self.guide.schedule.guided(step, total):
                self._verify(latents, step, run)
            moved, self._seen = self.guide.step(latents, step, total, run, sigma)
            return moved
        except Exception as error:
            if is_out_of_memory(error):
                reason = f"out of memory; try {self._what_is_left()}"
            else:
                reason = reasons.explained(error, self.active())
        self.stood_aside = f"at step {step + 1} of {total}: {reason}"
        log.warning("Attention Decoupling stands aside %s", self.stood_aside)
        return latents

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
        self, size: Sequence[int], step: int, total: int, rows: Callable[[], ConditionalRows]
    ) -> Iterator[None]:
        """Inside, the host makes its own pass of a step on latents of height and width ``size``; behind it the
        observers are shown what was seen. No failure of this gets out."""
        images, found = self.wanted(step, total), dict[int, Tensor]()
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
            for seen in self._seen or self.guide.unmoved(step, maps):
                self.observers.show(seen)
        except Exception as error:
            self._unreadable(error)
        self._seen = []

    def _what_is_left(self) -> str:
        """What a user can still do about the memory, of which guidance has tried what the settings allow."""
        allowed = self.guide.gradient.learned.thrift.may_recompute
        return ("" if allowed else "“Save memory”, ") + "fewer pixels, or a coarser map level"
