"""The latent update: maps -> loss -> gradient -> step, before the denoiser runs.

Attend-and-Excite's loop [F] with the paper's overlap losses [P]. Every image of a batch is moved by its own
loss alone. How a gradient is had stands in ``gradient.py``, who looks on in ``observe.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .gradient import LossGradient, NonFinite, Pass
from .observe import Observation, Observers
from .schedule import Schedule, StepRule


@dataclass(frozen=True)
class Refinement:
    """Repeat the update at some steps until the loss is at most ``threshold`` or ``rounds`` are spent.

    An image whose loss is at most ``threshold`` at the first look is left alone there.
    """

    steps: tuple[int, ...] = ()
    threshold: float = 0.0
    rounds: int = 20


@dataclass(frozen=True)
class Caution:
    """What is done where few steps are guided, each so far that the gradient says little of its end [I].

    Of the relative rule alone, as the other is a published method's. With at most ``places`` guided steps an update is
    no longer than ``longest`` of the latents' norm, and one that raises the loss is halved, ``halvings`` times at
    most, then taken back. On the embedded model at 8 steps 0.1 cost effect (missing of 50: 12, with its profile), and
    0.3 none (9, as without a limit).
    """

    places: int = 4
    longest: float = 0.3
    halvings: int = 2


@dataclass
class Guide:
    """Guidance of one sampling run.

    ``stop_below``: an image whose loss is at most this at a step's first look is left alone at that step;
    refinement, once begun, goes by its own threshold. ``look_after(step, total)``: is one more look behind a
    step's update wanted, for the observers?
    """

    gradient: LossGradient
    schedule: Schedule = field(default_factory=Schedule)
    rule: StepRule = field(default_factory=StepRule)
    refinement: Refinement = field(default_factory=Refinement)
    stop_below: float | None = None
    caution: Caution = field(default_factory=Caution)
    look_after: Callable[[int, int], bool] = lambda step, total: False
    observers: Observers = field(default_factory=Observers)
    interrupted: Callable[[], bool] = lambda: False

    def step(self, latents: Tensor, step: int, total: int, run: Pass, sigma: Tensor | None = None) -> Tensor:
        """The latents ``[batch, ...]`` to denoise at ``step`` (from 0) of ``total``; the input is not changed.

        ``sigma``: see :meth:`StepRule.update`. Raises NonFinite, and whatever the denoiser raises.
        """
        if self.schedule.start >= self.schedule.window(total):
            raise ValueError(f"start: {self.schedule.start} passes over all {self.schedule.window(total)} guided steps")
        if not self.schedule.guided(step, total):
            return latents
        moved, images = latents.clone(), self.gradient.reader.named
        shares = latents.new_zeros(len(latents), dtype=torch.float32)
        seen: dict[int, Observation] = {}
        place = self.schedule.place(step, total)
        for limit in self._limits(step):
            if not images or self.interrupted():
                break
            losses, gradient, maps = self.gradient(moved[images], images, run)
            self._note(seen, step, images, losses, maps)
            above = [k for k, loss in enumerate(losses.tolist()) if loss > limit]
            images = [images[k] for k in above]
            update = self.rule.update(moved[images], gradient[above], step, total, place, sigma)
            if place[1] <= self.caution.places and self.rule.name == "relative":
                update = self._accepted(moved[images], update, losses[above], images, run, seen)
            shares[images] += _norms(update) / _norms(moved[images]).clamp(min=1e-30)
            moved[images] += update
            images = [image for image in images if not seen[image].taken_back]
        self._tell(seen, shares, moved, step, total, run)
        return moved

    def look(self, latents: Tensor, step: int, run: Pass) -> None:
        """Show the observers the maps of ``latents``, which nothing moves at this step."""
        images, seen = self.gradient.reader.named, dict[int, Observation]()
        if images:
            self._note(seen, step, images, *self.gradient.look(latents[images], images, run))
        for observation in seen.values():
            observation.guided = False
            self.observers.show(observation)

    def _accepted(
        self,
        latents: Tensor,
        update: Tensor,
        losses: Tensor,
        images: Sequence[int],
        run: Pass,
        seen: dict[int, Observation],
    ) -> Tensor:
        """``update`` as far as :class:`Caution` lets it go, seen at the noise level at which it was made."""
        share = (self.caution.longest * _norms(latents) / _norms(update).clamp(min=1e-30)).clamp(max=1)
        rising = list(range(len(images)))
        for _ in range(self.caution.halvings + 1):
            if not rising or self.interrupted():
                break
            there = latents[rising] + _rows(share[rising], update) * update[rising]
            found, maps = self.gradient.look(there, [images[k] for k in rising], run)
            for k, own in zip(rising, maps):
                seen[images[k]].after = own
                seen[images[k]].looks += 1
            rising = [k for k, loss in zip(rising, found.tolist()) if not loss <= losses[k]]
            share[rising] /= 2
        for k in rising:
            share[k], seen[images[k]].taken_back, seen[images[k]].after = 0, True, None
        return _rows(share, update) * update

    def _limits(self, step: int) -> list[float]:
        """Of each round at ``step``, the loss that leaves an image alone."""
        stop = -math.inf if self.stop_below is None else self.stop_below
        if step not in self.refinement.steps:
            return [stop]
        threshold = self.refinement.threshold
        return [max(threshold, stop), *[threshold] * (self.refinement.rounds - 1)]

    def _note(
        self, seen: dict[int, Observation], step: int, images: Sequence[int], losses: Tensor, maps: Sequence[Tensor]
    ) -> None:
        for image, loss, own in zip(images, losses.tolist(), maps):
            if image in seen:
                seen[image].passes += 1
            else:
                seen[image] = Observation(step, image, self.gradient.reader.images[image].names, own, loss)

    def _tell(
        self, seen: dict[int, Observation], shares: Tensor, moved: Tensor, step: int, total: int, run: Pass
    ) -> None:
        """Show what was done. Raises NonFinite when an update is not finite."""
        for image, share in enumerate(shares.tolist()):
            if not math.isfinite(share):
                raise NonFinite("the update is not finite")
            if image in seen:
                seen[image].update = share
        if seen and self.look_after(step, total) and not self.interrupted():
            unseen = [image for image, observation in seen.items() if observation.after is None]
            for image, maps in zip(unseen, self.gradient.look(moved[unseen], unseen, run)[1] if unseen else ()):
                seen[image].after = maps
                seen[image].looks += 1
        for observation in seen.values():
            self.observers.show(observation)


def _norms(rows: Tensor) -> Tensor:
    """Euclidean length of each row ``[k, ...]``, in float32."""
    return rows.float().flatten(1).norm(dim=1)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """One value a row ``[k]``, to be multiplied with ``like`` ``[k, ...]``."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
