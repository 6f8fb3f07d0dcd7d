"""SAGA's rule [arXiv 2508.13866] as an arm beside ours: at one step the latents are drawn anew, around a signal that
was learned there, and nothing else is moved.

Latents at noise level ``sigma`` (``sqrt((1 - alpha-bar) / alpha-bar)``) are taken for drawn from ``N(m, s^2)``,
``s = sigma / sqrt(1 + sigma^2)``, around a signal ``m``. It begins as each channel's mean of what the sampler predicts
and goes down a loss on the entities' maps, the mean over noises that are new in every round; it may vary no more than
the predicted one does. What is denoised on is ``m`` with the image's own first noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.gradient import Pass, rows
from ...core.guidance import Guide, GuidedStep
from ...core.observe import Observation

ROUNDS, NOISES = 10, 4
"""Steps of SGD, and noises of each. The paper's own are 50 and 10 [F: gsn-factory], 500 passes an image."""
MOMENTUM = 0.4
"""Of SGD [F: gsn-factory, Stable Diffusion 1.4]."""
_STREAM = 0x5A6A
"""Sets the noises that are learned with apart from the first one of the same seed."""


class Point(NamedTuple):
    """A step's latents ``[batch, channels, h, w]`` (alpha-bar form) and their noise level."""

    latents: Tensor
    sigma: float

    @property
    def unscaled(self) -> Tensor:
        """``x0 + sigma*eps``."""
        return self.latents * math.sqrt(1 + self.sigma**2)


def predicted(before: Point, after: Point) -> Tensor:
    """The clean latents that a DDIM step without noise of its own went by, which leads along a straight line in
    ``x0 + sigma*eps``."""
    return (before.sigma * after.unscaled - after.sigma * before.unscaled) / (before.sigma - after.sigma)


def held(signal: Tensor, reference: Tensor) -> Tensor:
    """``signal`` ``[k, ...]``, made smaller where an image's deviates more than its ``reference`` does."""
    own, most = (one.flatten(1).std(1) for one in (signal, reference))
    return signal * (most / own.clamp(min=1e-12)).clamp(max=1).view(-1, *[1] * (signal.ndim - 1))


def learn(reference: Tensor, slope: Callable[[Tensor], Tensor], size: float) -> Tensor:
    """The signal ``[k, channels, h, w]`` learned from ``reference``, the predicted one; ``slope``: of a signal, the
    gradient of its loss, as a mean over new noises. ``size``: SGD's step."""
    signal = reference.mean((-1, -2), keepdim=True).expand_as(reference).clone().requires_grad_()
    descent = torch.optim.SGD([signal], lr=size, momentum=MOMENTUM)
    for _ in range(ROUNDS):
        with torch.enable_grad():
            now = held(signal, reference)
        descent.zero_grad()
        now.backward(slope(now.detach()))
        descent.step()
    return held(signal.detach(), reference)


@dataclass
class Saga(Guide):
    """The schedule's first guided step is where the signal is learned; ``rule.size`` is SGD's step."""

    seeds: Sequence[int] = ()
    """Of each image, for the noises that are learned with."""
    _first: Tensor | None = field(default=None, init=False)
    """Noise that the run began with."""
    _last: Point | None = field(default=None, init=False)

    @classmethod
    def instead(cls, guide: Guide, seeds: Sequence[int]) -> Saga:
        """In the place of a guide that the settings made."""
        return cls(**{one.name: getattr(guide, one.name) for one in fields(guide) if one.init}, seeds=seeds)

    def step(
        self,
        latents: Tensor,
        step: int,
        total: int,
        run: Pass,
        sigma: Tensor | None = None,
        noise: float = math.inf,
    ) -> GuidedStep:
        """See :meth:`Guide.step`; ``noise`` is needed. Raises ValueError for latents that are not in alpha-bar form and
        where no step has come before the one to learn at."""
        if sigma is not None or not math.isfinite(noise):
            raise ValueError("saga: needs a sampler whose latents are scaled as DDIM's are, and their noise level")
        before, self._last = self._last, Point(latents, noise)
        if self._first is None:
            self._first = latents
        images = self.look_for(noise)
        if step != self.schedule.start or not images:
            return GuidedStep(latents, [])
        if before is None:
            raise ValueError(f"start: {step} is not allowed; the signal is known from step 1 on")
        return self._drawn_anew(images, before, self._last, step, run)

    def _drawn_anew(self, images: Sequence[int], before: Point, here: Point, step: int, run: Pass) -> GuidedStep:
        scale = math.sqrt(1 + here.sigma**2)
        reference, deviation = rows(predicted(before, here), images) / scale, here.sigma / scale
        sources = [torch.Generator("cpu").manual_seed(self.seeds[image] ^ _STREAM) for image in images]
        seen: dict[int, Observation] = {}

        def slope(signal: Tensor) -> Tensor:
            total = torch.zeros_like(signal)
            for _ in range(NOISES):
                fresh = torch.stack([torch.randn(signal.shape[1:], generator=own) for own in sources]).to(signal)
                losses, gradient, maps, _ = self.gradient(signal + deviation * fresh, images, run)
                total += gradient
                self._note(seen, step, images, losses.tolist(), maps)
            return total / NOISES

        assert self._first is not None
        drawn = learn(reference, slope, self.rule.size) + deviation * rows(self._first, images)
        moved = here.latents.clone()
        for k, image in enumerate(images):
            seen[image].update = float((drawn[k] - moved[image]).norm() / moved[image].norm())
            moved[image] = drawn[k]
        return GuidedStep(moved, list(seen.values()))
