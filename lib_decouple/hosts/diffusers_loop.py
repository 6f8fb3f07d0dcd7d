"""A diffusers pipeline's own sampling loop: its latents guided before each step, its passes looked at beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.host_pass import RowsInOrder
from ..core.maps import MapReader
from ..core.presence import Curve
from . import reasons
from .base import Session
from .diffusers_prompts import Condition
from .tell import Teller


def step_openings(scheduler: Any) -> list[bool]:
    """Of each denoiser call, whether it is the first of a sampler's step; after ``set_timesteps``.

    At the others (Heun, DPM2, PNDM's start) the sampler evaluates a point on the way and goes on
    from latents that it has put aside, which an update of those at hand would not reach.
    """
    calls = len(scheduler.timesteps)
    if hasattr(scheduler, "state_in_first_order"):
        return [call % 2 == 0 for call in range(calls)]
    if hasattr(scheduler, "prk_timesteps"):
        warm = len(scheduler.prk_timesteps)
        return [call % 4 == 0 if call < warm else warm > 0 or call != 1 for call in range(calls)]
    return [True] * calls


def first_noise(
    unet: Any, generators: Sequence[torch.Generator], height: int | None = None, width: int | None = None
) -> Tensor:
    """Noise ``[generators, channels, height, width]``, each image's from its own generator; the UNet's own size by
    default."""
    shape = (1, unet.config.in_channels, height or unet.config.sample_size, width or unet.config.sample_size)
    return torch.cat([torch.randn(shape, generator=own) for own in generators]).to(unet.device, unet.dtype)


@dataclass(frozen=True)
class BesideLoop:
    """What is done beside a pipeline's own loop."""

    session: Session
    teller: Teller
    reader: MapReader
    """Of the maps by which it is told which entity is there."""
    curve: Curve | None
    needs_noise: bool
    """Does what moves the latents go by their noise level?"""


@dataclass
class Loop:
    """One call of the pipeline, whose scheduler's timesteps are set."""

    pipe: Any
    images: int
    condition: Condition
    beside: BesideLoop | None
    keep_latents: bool = False
    progress: Callable[[int, int], None] | None = None
    latents: list[Tensor] = field(default_factory=list, init=False)
    """After every denoiser call, where they are kept."""
    _opens: list[bool] = field(init=False)
    _looking: ExitStack = field(default_factory=ExitStack, init=False)
    """At the pipeline's own pass of a step, until that is over."""

    def __post_init__(self) -> None:
        self._opens = step_openings(self.pipe.scheduler)

    def run(self, noise: Tensor, **given: Any) -> list[Any]:
        """The pipeline's images from ``noise``; ``given``: what else it is called with."""
        start = self.pipe.scheduler.init_noise_sigma
        beginning = noise * start
        with self._looking:
            moved = self._guided(beginning, 0)
            first = noise if moved is beginning else moved / start  # untouched: the pipeline's own start, to the bit
            made = self.pipe(
                **given,
                latents=first,
                callback_on_step_end=self._after_step,
                callback_on_step_end_tensor_inputs=["latents"],
            )
        return list(made.images)

    def _guided(self, latents: Tensor, call: int) -> Tensor:
        """``latents`` as the sampler holds them before its denoiser call ``call``, guided where that opens a step."""
        beside, scheduler = self.beside, self.pipe.scheduler
        if beside is None or call >= len(self._opens) or not self._opens[call]:
            return latents
        timestep = scheduler.timesteps[call]
        probe = torch.ones((), device=latents.device, dtype=torch.float32)
        shrink = scheduler.scale_model_input(probe, timestep)
        sigma = None if shrink == 1 else (shrink**-2 - 1).sqrt()

        def run(x: Tensor, images: Sequence[int]) -> None:
            own = self.condition.of(images)
            self.pipe.unet(
                x * shrink.to(x.dtype), timestep, encoder_hidden_states=own.embeds, added_cond_kwargs=own.extra or None,
                return_dict=False,
            )  # fmt: skip

        step, total = sum(self._opens[:call]), sum(self._opens)
        noise = self._sigma(timestep) if beside.needs_noise else math.inf
        moved = beside.session.before_step(latents, step, total, run, sigma, noise)
        if moved is not latents and getattr(scheduler, "last_sample", None) is not None:
            scheduler.last_sample = None  # UniPC's corrector would go on from the latents before the update
        self._look(beside, latents.shape, step, timestep)
        return moved

    def _look(self, beside: BesideLoop, shape: torch.Size, step: int, timestep: Tensor) -> None:
        """Have the pass that the pipeline makes next read, for the session and for what is told."""
        enter, teller = self._looking.enter_context, beside.teller
        enter(beside.session.beside_host(shape, step, sum(self._opens), self._own_rows))
        level = self._sigma(timestep) if teller.waiting else math.inf
        if teller.due(level):
            enter(
                teller.beside_host(
                    level, shape[-2:], self.pipe.unet, beside.reader, self._own_rows, beside.curve, reasons.explained
                )
            )

    def _sigma(self, timestep: Tensor) -> float:
        kept = float(self.pipe.scheduler.alphas_cumprod[round(float(timestep))])
        return math.sqrt((1 - kept) / kept)

    def _own_rows(self) -> RowsInOrder:
        """Under classifier-free guidance the unconditional rows come first."""
        first = self.images if self.pipe.do_classifier_free_guidance else 0
        return RowsInOrder(self.images, first, (first,))

    def _after_step(self, _: Any, call: int, __: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        self._looking.close()
        if self.keep_latents:
            self.latents.append(given["latents"].clone())
        if self.progress:
            self.progress(call + 1, len(self._opens))
        return {"latents": self._guided(given["latents"], call + 1)}
