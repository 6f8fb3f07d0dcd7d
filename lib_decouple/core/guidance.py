"""The latent update: maps -> loss -> gradient -> step, before the denoiser runs.

Attend-and-Excite's loop [F] with the paper's overlap losses [P]. Every image of a batch is moved
by its own loss alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .maps import Combine, CrossAttentionLayer, Entity, Treatment, captured, entity_maps
from .schedule import Schedule, StepRule
from .trace import ImageTrace, Moment, kept, look, measure

Context = Callable[[], AbstractContextManager[Any]]
Pass = Callable[[Tensor, Sequence[int]], object]
"""``run(latents, images)``: the denoiser's conditional pass on the latents ``[k, ...]`` of the k
images named by their index in the batch. Rows are image-major, an image's AND parts consecutive."""


_AFTER: tuple[Moment, ...] = ("first", "last")
"""Moments behind an update."""


class NonFinite(ArithmeticError):
    """A loss or a gradient is not a finite number."""


@dataclass(frozen=True)
class ImagePlan:
    """What is needed of one image: its entities, and the number of its prompts joined by AND."""

    entities: tuple[Entity, ...]
    parts: int = 1
    end: int | None = None
    """Position of the end token, for Attend-and-Excite's treatment; None takes the context's last."""

    @property
    def names(self) -> tuple[str, ...]:
        """The entities' names, in order."""
        return tuple(entity.name for entity in self.entities)


@dataclass(frozen=True)
class Refinement:
    """Repeat the update at some steps until the loss is at most ``threshold`` or ``rounds`` are spent.

    An image whose loss is at most ``threshold`` at the first look is left alone there.
    """

    steps: tuple[int, ...] = ()
    threshold: float = 0.0
    rounds: int = 20


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside; each one's ``requires_grad`` is restored after."""
    # An inference tensor takes none anyway, and torch forbids to switch it back.
    before = [one for one in model.parameters() if one.requires_grad and not one.is_inference()]
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


@contextmanager
def checkpointed(
    model: nn.Module, layers: Sequence[CrossAttentionLayer], again: Context = nullcontext
) -> Iterator[None]:
    """Blocks that hold none of ``layers`` keep no activations inside; they are computed again, in ``again``, for the
    gradient."""
    read = {layer.module for layer in layers}
    blocks = [
        block
        for block in model.modules()
        if type(block).__name__ in ("ResnetBlock2D", "ResBlock", "BasicTransformerBlock")
        and read.isdisjoint(block.modules())
    ]
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=lambda: (again(), again()))
    try:
        yield
    finally:
        for block, forward in zip(blocks, before):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


@dataclass
class Guide:
    """Guidance of one sampling run.

    ``loss`` takes maps ``[1, entities, h, w]`` and gives ``[1]``. ``stop_below``: an image whose loss
    is at most this at a step's first look is left alone at that step; refinement, once begun, goes by
    its own threshold. ``observe`` only looks: no gradient, no update, every
    step; ``watch`` looks at the steps that are not guided, too. ``one_at_a_time`` bounds memory by one
    image a pass; ``checkpoint`` by computing most blocks twice, within ``again``. ``keep_maps`` puts the
    maps into the trace; ``keep_moments`` those of three moments, which costs a look after the first update,
    and one each at the beginning and at the end where no pass is made there anyway. ``look_after`` measures
    every update's effect by one more look.
    """

    model: nn.Module
    layers: Sequence[CrossAttentionLayer]
    images: Sequence[ImagePlan]
    loss: Callable[[Tensor], Tensor]
    schedule: Schedule = field(default_factory=Schedule)
    rule: StepRule = field(default_factory=StepRule)
    treatment: Treatment = "raw"
    combine: Combine = "mean"
    refinement: Refinement = field(default_factory=Refinement)
    stop_below: float | None = None
    one_at_a_time: bool = False
    checkpoint: bool = False
    again: Context = nullcontext
    observe: bool = False
    watch: bool = False
    keep_maps: bool = False
    keep_moments: bool = False
    look_after: bool = False
    interrupted: Callable[[], bool] = lambda: False
    traces: list[ImageTrace] = field(init=False)

    def __post_init__(self) -> None:
        self.traces = [ImageTrace(plan.names) for plan in self.images]
        wanted = sorted({t for plan in self.images for entity in plan.entities for t in entity.tokens})
        self._tokens = None if self.treatment == "attend-excite" else wanted

    def maps(self, latents: Tensor, images: Sequence[int], run: Pass) -> list[Tensor]:
        """Entity maps ``[entities, h, w]`` of each of ``images`` by one conditional pass."""
        with captured(self.layers, self._tokens) as capture:
            run(latents, images)
        height, width = latents.shape[-2:]
        grids = capture.average(height, width, self.layers)
        found, row = [], 0
        for index in images:
            plan = self.images[index]
            own = grids[row : row + plan.parts]
            found.append(entity_maps(own, self._tokens, plan.entities, self.treatment, self.combine, plan.end))
            row += plan.parts
        return found

    def gradient(self, latents: Tensor, images: Sequence[int], run: Pass) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Losses ``[k]``, gradients like ``latents`` and the maps of ``images``.

        Raises NonFinite when a loss or a gradient is not finite.
        """
        saving = checkpointed(self.model, self.layers, self.again) if self.checkpoint else nullcontext()
        with torch.enable_grad(), frozen(self.model), saving:
            leaf = latents.detach().clone().requires_grad_()
            maps = self.maps(leaf, images, run)
            losses = torch.cat([self.loss(own[None]) for own in maps])
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        for name, value in (("loss", losses), ("gradient", gradient)):
            if not torch.isfinite(value).all():
                raise NonFinite(f"the {name} is not finite")
        return losses.detach(), gradient, maps

    def step(self, latents: Tensor, step: int, total: int, run: Pass, sigma: Tensor | None = None) -> Tensor:
        """The latents ``[batch, ...]`` to denoise at ``step`` (from 0) of ``total``; the input is not changed.

        ``sigma``: see :meth:`StepRule.update`. Raises NonFinite, and whatever the denoiser raises.
        """
        if not self.observe and self.schedule.start >= self.schedule.window(total):
            raise ValueError(f"start: {self.schedule.start} passes over all {self.schedule.window(total)} guided steps")
        guided_step = self.schedule.guided(step, total)
        if self.observe or (self.watch and not guided_step):
            return self._look(latents, step, run)
        guided = self._named()
        if not guided_step:
            if self.keep_moments and step == 0 and guided:
                self._look_again(latents[guided], guided, step, run, "unguided")
            return latents
        groups = [[i] for i in guided] if self.one_at_a_time else [guided] if guided else []
        moved = latents.clone()
        try:
            for group in groups:
                moved[group] = self._move(latents[group], group, step, total, run, sigma)
                self._look_after(moved[group], group, step, total, run)
        except BaseException:
            for trace in self.traces:
                if trace.steps and trace.steps[-1].step == step:
                    trace.steps[-1].update_norm = 0.0
                    trace.steps[-1].after = None
                for moment in _AFTER:
                    if (made := trace.moments.get(moment)) and made.step == step:
                        del trace.moments[moment]
            raise
        return moved

    def _named(self) -> list[int]:
        """The images that have entities."""
        return [i for i, plan in enumerate(self.images) if plan.entities]

    @torch.no_grad()
    def _look(self, latents: Tensor, step: int, run: Pass) -> Tensor:
        """Put maps that nothing moved at this step into the traces."""
        everyone = self._named()
        if not everyone:
            return latents
        for i, maps in zip(everyone, self.maps(latents[everyone], everyone, run)):
            loss, names = float(self.loss(maps[None])), self.images[i].names
            self.traces[i].steps.append(look(step, loss, names, maps, self.keep_maps, guided=False))
            if any(record.guided for record in self.traces[i].steps):
                self._keep(i, "last", step, maps)
        return latents

    @torch.no_grad()
    def _look_again(
        self, latents: Tensor, images: Sequence[int], step: int, run: Pass, *moments: Moment
    ) -> list[Tensor]:
        """Maps of ``images`` by a pass that serves the figures alone."""
        found = self.maps(latents, images, run)
        for i, maps in zip(images, found):
            self.traces[i].looks += 1
            for moment in moments:
                self._keep(i, moment, step, maps)
        return found

    def _look_after(self, latents: Tensor, images: Sequence[int], step: int, total: int, run: Pass) -> None:
        """What this step's update has done, where that is wanted."""
        place, count = self.schedule.place(step, total)
        first, nothing_behind = place == 0, place == count - 1 and self.schedule.window(total) == total
        if not (self.look_after or (self.keep_moments and (first or nothing_behind))) or self.interrupted():
            return
        moments: tuple[Moment, ...] = ("first", "last") if first else ("last",)
        for i, maps in zip(images, self._look_again(latents, images, step, run, *moments)):
            if self.look_after:
                self.traces[i].steps[-1].after = measure(self.images[i].names, maps)

    def _keep(self, image: int, moment: Moment, step: int, maps: Tensor) -> None:
        if self.keep_moments:
            self.traces[image].moments[moment] = kept(step, self.images[image].names, maps)

    def _move(
        self, latents: Tensor, images: list[int], step: int, total: int, run: Pass, sigma: Tensor | None
    ) -> Tensor:
        """All rounds of one step for some images."""
        refined = step in self.refinement.steps
        rounds = self.refinement.rounds if refined else 1
        place = self.schedule.place(step, total)
        active, moved = list(range(len(images))), latents.clone()
        for turn in range(rounds):
            if not active or self.interrupted():
                break
            limits = [self.refinement.threshold] if refined else []
            if turn == 0 and self.stop_below is not None:
                limits.append(self.stop_below)
            losses, gradient, maps = self.gradient(moved[active], [images[k] for k in active], run)
            keep = []
            for j, k in enumerate(active):
                trace = self.traces[images[k]]
                if turn == 0:
                    trace.steps.append(
                        look(step, float(losses[j]), self.images[images[k]].names, maps[j], self.keep_maps)
                    )
                    trace.moments.pop("last", None)
                    if step == 0:
                        self._keep(images[k], "unguided", step, maps[j])
                else:
                    trace.steps[-1].passes += 1
                if all(float(losses[j]) > limit for limit in limits):
                    keep.append(j)
            chosen = [active[j] for j in keep]
            if chosen:
                update = self.rule.update(moved[chosen], gradient[keep], step, total, place, sigma)
                if not torch.isfinite(update).all():
                    raise NonFinite("the update is not finite")
                for k, own in zip(chosen, update):
                    length = float(own.float().norm() / moved[k].float().norm().clamp(min=1e-30))
                    self.traces[images[k]].steps[-1].update_norm += length
                moved[chosen] = moved[chosen] + update
            active = chosen
        return moved
