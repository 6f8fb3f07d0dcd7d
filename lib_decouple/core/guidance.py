"""The latent update: maps -> loss -> gradient -> step, before the denoiser runs.

Attend-and-Excite's loop [F] with the paper's overlap losses [P]. Every image of a batch is moved by its own
loss alone. How a gradient is had stands in ``gradient.py``, who looks on in ``observe.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .gradient import LossGradient, NonFinite, Pass, rows
from .observe import Observation
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


class GuidedStep(NamedTuple):
    """What a step gave."""

    latents: Tensor
    """``[batch, ...]``, to denoise."""
    seen: list[Observation]
    """Of each image that was looked at, by its own passes."""


@dataclass
class Guide:
    """Guidance of one sampling run.

    ``stop_below``: an image whose loss is at most this at a step's first look is left alone at that step;
    refinement, once begun, goes by its own threshold.
    """

    gradient: LossGradient
    schedule: Schedule = field(default_factory=Schedule)
    rule: StepRule = field(default_factory=StepRule)
    refinement: Refinement = field(default_factory=Refinement)
    stop_below: float | None = None
    caution: Caution = field(default_factory=Caution)
    interrupted: Callable[[], bool] = lambda: False

    def step(self, latents: Tensor, step: int, total: int, run: Pass, sigma: Tensor | None = None) -> GuidedStep:
        """Guide the latents ``[batch, ...]`` at ``step`` (from 0) of ``total``; the input is not changed.

        ``sigma``: see :meth:`StepRule.update`. Raises NonFinite, and whatever the denoiser raises.
        """
        if self.schedule.start >= self.schedule.window(total):
            raise ValueError(f"start: {self.schedule.start} passes over all {self.schedule.window(total)} guided steps")
        if not self.schedule.guided(step, total):
            return GuidedStep(latents, [])
        place = self.schedule.place(step, total)

        def update_of(latents: Tensor, gradient: Tensor) -> Tensor:
            return self.rule.update(latents, gradient, step, total, place, sigma)

        def share_of(latents: Tensor, gradient: Tensor) -> Tensor:
            return _norms(update_of(latents, gradient)) / _norms(latents).clamp(min=1e-30)

        moved, images = latents.clone(), self.gradient.reader.named
        seen: dict[int, Observation] = {}
        for limit in self._limits(step):
            if not images or self.interrupted():
                break
            own = rows(moved, images)
            losses, gradient, maps, shares = self.gradient(own, images, run, share_of)
            self._note(seen, step, images, losses.tolist(), maps)
            above = [k for k, loss in enumerate(losses.tolist()) if loss > limit]
            images = [images[k] for k in above]
            update = rows(update_of(own, gradient), above)
            shares = rows(shares, above)
            if not torch.isfinite(shares).all():
                raise NonFinite("the update is not finite")
            if place[1] <= self.caution.places and self.rule.name == "relative":
                taken = self._taken(rows(own, above), update, losses[above], shares, images, run, seen)
                shares, update = shares * taken, _column(taken, update) * update
            for k, image in enumerate(images):
                seen[image].update += float(shares[k])
                moved[image] += update[k]
            images = [image for image in images if not seen[image].taken_back]
        return GuidedStep(moved, list(seen.values()))

    def unmoved(self, step: int, maps: Mapping[int, Tensor]) -> list[Observation]:
        """What is seen of images whose ``maps`` ``[entities, h, w]`` were read at a step that moved nothing."""
        plans, loss = self.gradient.reader.images, self.gradient.loss
        with torch.no_grad():
            losses = torch.cat([loss(own[None]) for own in maps.values()]).tolist() if maps else []
        return [
            Observation(step, image, plans[image].names, own, value, guided=False, passes=0)
            for (image, own), value in zip(maps.items(), losses)
        ]

    def _taken(
        self,
        latents: Tensor,
        update: Tensor,
        losses: Tensor,
        shares: Tensor,
        images: Sequence[int],
        run: Pass,
        seen: dict[int, Observation],
    ) -> Tensor:
        """How much of ``update`` :class:`Caution` lets each image have, ``[k]`` in [0, 1], seen at the noise level at
        which it was made."""
        taken = (self.caution.longest / shares.clamp(min=1e-30)).clamp(max=1)
        rising = list(range(len(images)))
        for _ in range(self.caution.halvings + 1):
            if not rising or self.interrupted():
                break
            there = rows(latents, rising) + _column(taken[rising], update) * rows(update, rising)
            found, maps = self.gradient.look(there, [images[k] for k in rising], run)
            for k, own in zip(rising, maps):
                seen[images[k]].after = own
                seen[images[k]].looks += 1
            rising = [k for k, loss in zip(rising, found.tolist()) if not loss <= losses[k]]
            taken[rising] /= 2
        for k in rising:
            taken[k], seen[images[k]].taken_back, seen[images[k]].after = 0, True, None
        return taken

    def _limits(self, step: int) -> list[float]:
        """Of each round at ``step``, the loss that leaves an image alone."""
        stop = -math.inf if self.stop_below is None else self.stop_below
        if step not in self.refinement.steps:
            return [stop]
        threshold = self.refinement.threshold
        return [max(threshold, stop), *[threshold] * (self.refinement.rounds - 1)]

    def _note(
        self,
        seen: dict[int, Observation],
        step: int,
        images: Sequence[int],
        losses: Sequence[float],
        maps: Sequence[Tensor],
    ) -> None:
        for image, loss, own in zip(images, losses, maps):
            if image in seen:
                seen[image].passes += 1
            else:
                seen[image] = Observation(step, image, self.gradient.reader.images[image].names, own, loss)


def _norms(batch: Tensor) -> Tensor:
    """Euclidean length of each row ``[k, ...]``, in float32."""
    return batch.float().flatten(1).norm(dim=1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value a row ``[k]``, to be multiplied with ``like`` ``[k, ...]``."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
