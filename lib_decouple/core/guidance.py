"""The latent update: maps -> loss -> gradient -> step, before the denoiser runs.

Attend-and-Excite's loop [F] with the paper's overlap losses [P]. Every image of a batch is moved by its own
loss alone. How a gradient is had stands in ``gradient.py``, who looks on in ``observe.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .gradient import LossAndGradient, LossGradient, NonFinite, Pass, rows
from .maps import ImagePlan
from .observe import Observation
from .presence import Helping
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


class WaitingUpdate(NamedTuple):
    """A gradient of the host's own pass of a step, to move the latents of the next."""

    step: int
    total: int
    images: list[int]
    gradient: Tensor
    """By the scaled latents (alpha-bar form) of these images ``[k, ...]``."""
    seen: list[Observation]
    """Of these images; each one's update is told where it is made."""
    strengths: Tensor | None = None
    """What each image's update is multiplied with, ``[k]``, where that is not 1."""


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
    late: bool = False
    """Is the gradient that of the host's own pass, where :meth:`can_wait`?"""
    helping: Helping | None = None
    """Who is moved, where that goes by presence."""

    def of(self, images: Sequence[ImagePlan]) -> Guide:
        """A guide like this one, of other ``images``, whose number says nothing of the memory that its own take, nor
        their gradients' size of the loss' scale: what this one moves is the same whatever the other has found out."""
        gradient = copy.copy(self.gradient)
        gradient.reader, gradient.focused = replace(gradient.reader, images=images), None
        thrift, scale = copy.copy(gradient.learned.thrift), copy.copy(gradient.learned.scale)
        gradient.learned = replace(gradient.learned, thrift=thrift, scale=scale, foreseen=False)
        return replace(self, gradient=gradient, helping=self.helping and replace(self.helping, whole=set()))

    def can_wait(self, step: int, total: int) -> bool:
        """Could this guided step's update be made before the next? Not where there is none, where updates are repeated,
        or where caution looks behind each."""
        cautious = self.rule.name == "relative" and self.schedule.place(step, total)[1] <= self.caution.places
        return step + 1 < total and step not in self.refinement.steps and not cautious

    def look_for(self, noise: float) -> list[int]:
        """The images that a step at this noise level can move; who of their entities is, its gradient will know."""
        named = self.gradient.reader.named
        if self.helping is None:
            return named
        self.gradient.focused = partial(self.helping.focused, sigma=noise)
        return [image for image in named if image not in self.helping.whole]

    def _to_move(
        self, images: Sequence[int], losses: Sequence[float], maps: Sequence[Tensor], limit: float, noise: float
    ) -> list[int]:
        """Places among ``images`` of those that are moved: neither decoupled nor whole."""
        if self.helping is not None:
            self.helping.note(images, maps, noise)
        whole = self.helping.whole if self.helping else ()
        return [k for k, (image, loss) in enumerate(zip(images, losses)) if loss > limit and image not in whole]

    def _strengths(self, maps: Sequence[Tensor], noise: float) -> Tensor | None:
        """What the updates of images with these ``maps`` are multiplied with, ``[k]``; None where with 1."""
        if self.helping is None or not self.helping.weighed:
            return None
        return torch.tensor(self.helping.strengths(maps, noise))

    def waiting(
        self, step: int, total: int, images: Sequence[int], found: LossAndGradient, noise: float = math.inf
    ) -> WaitingUpdate:
        """What the host's own pass of ``step`` has ``found`` of ``images``; those that are left alone are not moved."""
        plans, losses = self.gradient.reader.images, found.losses.tolist()
        seen = [
            Observation(step, image, plans[image].names, own, loss, passes=0)
            for image, own, loss in zip(images, found.maps, losses)
        ]
        (limit,) = self._limits(step)
        moved = set(self._to_move(images, losses, found.maps, limit, noise))
        above = torch.tensor([float(k in moved) for k in range(len(images))])
        gradient = _column(above, found.gradient) * found.gradient
        return WaitingUpdate(step, total, list(images), gradient, seen, self._strengths(found.maps, noise))

    def moved(self, latents: Tensor, waiting: WaitingUpdate, sigma: Tensor | None = None) -> Tensor:
        """The latents ``[batch, ...]`` of the step behind that of ``waiting``, moved as those would have been.

        ``sigma``: see :meth:`StepRule.update`. Raises NonFinite.
        """
        own, gradient = rows(latents, waiting.images), waiting.gradient
        if sigma is not None:
            gradient = gradient / (1 + sigma**2).sqrt()
        place = self.schedule.place(waiting.step, waiting.total)
        update = self.rule.update(own, gradient, waiting.step, waiting.total, place, sigma)
        if waiting.strengths is not None:
            update = _column(waiting.strengths, update) * update
        shares = (_norms(update) / _norms(own).clamp(min=1e-30)).cpu()
        if not torch.isfinite(shares).all():
            raise NonFinite("the update is not finite")
        moved = latents.clone()
        for k, (image, seen) in enumerate(zip(waiting.images, waiting.seen)):
            seen.update = float(shares[k])
            moved[image] += update[k]
        return moved

    def step(
        self,
        latents: Tensor,
        step: int,
        total: int,
        run: Pass,
        sigma: Tensor | None = None,
        noise: float = math.inf,
    ) -> GuidedStep:
        """Guide the latents ``[batch, ...]`` at ``step`` (from 0) of ``total``; the input is not changed.

        ``z_i <- z_i - a_t dL(A(z_i))/dz_i`` for each image i that is to be moved: ``A`` its entities' maps, ``L`` the
        loss, ``a_t`` the rule's. Once; at a refined step until the loss is low enough.

        ``sigma``: see :meth:`StepRule.update`. ``noise``: the noise level, ``sqrt((1 - alpha-bar) / alpha-bar)``, for
        who goes by presence. Raises NonFinite, and whatever the denoiser raises.
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

        moved, images = latents.clone(), self.look_for(noise)
        seen: dict[int, Observation] = {}
        for limit in self._limits(step):
            if not images or self.interrupted():
                break
            own = rows(moved, images)
            # The update's length comes with the losses, as each copy to the CPU waits for the device.
            losses, gradient, maps, shares = self.gradient(own, images, run, share_of)
            self._note(seen, step, images, losses.tolist(), maps)
            above = self._to_move(images, losses.tolist(), maps, limit, noise)
            images = [images[k] for k in above]
            update = rows(update_of(own, gradient), above)
            shares = rows(shares, above)
            strengths = self._strengths([maps[k] for k in above], noise)
            if strengths is not None:
                shares, update = strengths.to(shares.device) * shares, _column(strengths, update) * update
            if not torch.isfinite(shares).all():
                raise NonFinite("the update is not finite")
            if place[1] <= self.caution.places and self.rule.name == "relative":
                taken = self._as_caution_allows(rows(own, above), update, losses[above], shares, images, run, seen)
                shares, update = shares * taken, _column(taken, update) * update
            for k, image in enumerate(images):
                seen[image].update += float(shares[k])
                moved[image] += update[k]
            images = [image for image in images if not seen[image].taken_back]
        return GuidedStep(moved, list(seen.values()))

    def drafted(
        self,
        latents: Tensor,
        steps: Sequence[int],
        total: int,
        run: Pass,
        sigma: Tensor | None = None,
        noise: float = math.inf,
    ) -> Tensor:
        """Latents ``[batch, ...]`` of a draft's pass, moved by one gradient as far as a run of ``total`` steps would
        move its own at all of ``steps`` together; the input is not changed.

        Rounds of refinement and caution are the run's alone. Raises as :meth:`step` does.
        """
        images = self.look_for(noise)
        if not steps or not images:
            return latents

        def update_of(latents: Tensor, gradient: Tensor) -> Tensor:
            places = [(step, self.schedule.place(step, total)) for step in steps]
            updates = [self.rule.update(latents, gradient, step, total, place, sigma) for step, place in places]
            return torch.stack(updates).sum(0)

        own = rows(latents, images)
        losses, gradient, maps, lengths = self.gradient(
            own, images, run, lambda latents, gradient: _norms(update_of(latents, gradient))
        )
        if not torch.isfinite(lengths).all():
            raise NonFinite("the update is not finite")
        update, moved = update_of(own, gradient), latents.clone()
        for k in self._to_move(images, losses.tolist(), maps, self._stop, noise):
            moved[images[k]] += update[k]
        return moved

    def unmoved(self, step: int, maps: Mapping[int, Tensor]) -> list[Observation]:
        """What is seen of images whose ``maps`` ``[entities, h, w]`` were read at a step that moved nothing."""
        plans, loss = self.gradient.reader.images, self.gradient.loss
        with torch.no_grad():
            losses = torch.cat([loss(own[None]) for own in maps.values()]).tolist() if maps else []
        return [
            Observation(step, image, plans[image].names, own, value, guided=False, passes=0)
            for (image, own), value in zip(maps.items(), losses)
        ]

    def _as_caution_allows(
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

    @property
    def _stop(self) -> float:
        """The loss that leaves an image alone at a step's first look."""
        return -math.inf if self.stop_below is None else self.stop_below

    def _limits(self, step: int) -> list[float]:
        """Of each round at ``step``, the loss that leaves an image alone."""
        if step not in self.refinement.steps:
            return [self._stop]
        threshold = self.refinement.threshold
        return [max(threshold, self._stop), *[threshold] * (self.refinement.rounds - 1)]

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
