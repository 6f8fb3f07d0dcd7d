"""When to guide, and how far to step: both count on the sampler's real number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Which of a sampler's steps are guided: the first ``steps`` (0: the first half), every ``every``-th of them.

    Those before ``start`` are passed over: at the highest noise the maps of some models do not yet tell
    where an entity will be. Raises ValueError for a negative ``steps`` or ``start``, or ``every`` below 1.
    """

    steps: int = 0
    every: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: {self.steps} must be 0 (the first half) or more")
        if self.start < 0:
            raise ValueError(f"start: {self.start} must be 0 or more")
        if self.every < 1:
            raise ValueError(f"every: {self.every} must be 1 or more")

    def window(self, total: int) -> int:
        """Number of steps, guided or passed over, from the sampler's first to the last that may be guided."""
        return min(total, self.steps or max(1, total // 2))

    def guided(self, step: int, total: int) -> bool:
        """Is ``step`` (from 0) of ``total`` guided?"""
        return self.start <= step < self.window(total) and (step - self.start) % self.every == 0

    def place(self, step: int, total: int) -> tuple[int, int]:
        """Which guided step this is (from 0), and of how many."""
        return (step - self.start) // self.every, math.ceil((self.window(total) - self.start) / self.every)

    def pooled(self, run: Sequence[float], levels: Sequence[float]) -> list[list[int]]:
        """The guided steps of a run that each pass of a coarser one stands for.

        ``run``: the noise level of each of the run's steps; ``levels``: those of the coarser one's passes; both fall.
        A pass stands for the steps from its own level down to that of the next, the last for the run's first step that
        has come so far, with which this ends. The first, on noise alone, where maps hardly tell anything, leaves its
        own to the second, unless there is none.
        """
        found: list[list[int]] = [[] for _ in levels]
        for step, sigma in enumerate(run):
            reached = sum(sigma <= level * (1 + 1e-6) for level in levels)
            if self.guided(step, len(run)):
                found[min(max(reached, 2), len(levels)) - 1].append(step)
            if reached == len(levels):
                break
        return found


@dataclass(frozen=True)
class StepRule:
    """How far one update goes.

    ``relative`` [I]: the update's norm is a share of the latents' own norm, so that it means the same
    for every loss, model and size. ``size`` is the sum of the shares over all guided steps; they fall
    linearly to the last one, and more steps make each one smaller.

    ``attend-excite`` [F]: ``a_t = size * sqrt(s_t)`` times the gradient, ``s_t`` falling linearly from
    1 to 0.5 over all of the sampler's steps; Attend-and-Excite takes ``size`` 20 with its own loss.

    Raises ValueError for an unknown name or a size that is not finite and above 0.
    """

    name: Literal["relative", "attend-excite"] = "relative"
    size: float = 0.15

    def __post_init__(self) -> None:
        if self.name not in ("relative", "attend-excite"):
            raise ValueError(f"rule: {self.name!r} is not one of relative, attend-excite")
        if not (math.isfinite(self.size) and self.size > 0):
            raise ValueError(f"size: {self.size} must be a finite number above 0")

    def share(self, place: int, places: int) -> float:
        """``relative``: this step's share of the latents' norm; the shares of all places sum to ``size``."""
        return self.size * 2 * (places - place) / (places * (places + 1))

    def update(
        self, latents: Tensor, gradient: Tensor, step: int, total: int, place: tuple[int, int], sigma: Tensor | None
    ) -> Tensor:
        """What to add to ``latents`` ``[batch, ...]``.

        ``sigma`` is None for scaled latents z (alpha-bar form), where the update is ``−a_t dL/dz``. For
        k-diffusion's ``x = z sqrt(1+sigma²)`` it is the noise level, and the same move reads
        ``−a_t (1+sigma²) dL/dx``. A zero gradient gives no update.
        """
        if self.name == "attend-excite":
            falling = 1 - 0.5 * step / max(1, total - 1)
            a = self.size * math.sqrt(falling)
            return (-a * gradient * (1 if sigma is None else 1 + sigma**2)).to(latents.dtype)
        axes = tuple(range(1, latents.ndim))
        length = gradient.float().square().sum(axes, keepdim=True).sqrt()
        own = latents.float().square().sum(axes, keepdim=True).sqrt()
        step_length = self.share(*place) * own / length.clamp(min=1e-30)
        return -(gradient.float() * step_length * (length > 0)).to(latents.dtype)


def flow_scale(t: Tensor) -> Tensor:
    """What a rectified flow's latents at time ``t`` (0: the picture, 1: noise) are over those of the alpha-bar form.

    The flow's x = (1 - t) x0 + t e, with e of unit variance. With c = sqrt((1 - t)² + t²), which is returned,
    z = x / c = sqrt(ab) x0 + sqrt(1 - ab) e has sqrt(ab) = (1 - t) / c and sqrt(1 - ab) = t / c: scaled latents at the
    noise level sigma = sqrt(1 - ab) / sqrt(ab) = t / (1 - t). As dL/dz = c dL/dx, the move z - a dL/dz is
    x - a c² dL/dx, where k-diffusion's latents, c = sqrt(1 + sigma²), have (1 + sigma²). A share of the latents' norm
    is the same share of either.

    FOCUS (arXiv 2510.02315) adds the gradient to the velocity instead. That reaches the latents only times the
    sampler's step in t, so that one size means another move with each schedule and count of steps, and a multistep
    sampler goes on extrapolating it; the latents themselves are moved here, as before every other sampler.
    """
    return ((1 - t) ** 2 + t**2).sqrt()
