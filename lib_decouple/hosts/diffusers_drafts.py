"""``look: choose`` and ``insist`` with the diffusers pipelines: drafts by the pipeline's own UNet and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.drafts import Draft, Move, Score, draft, in_groups, passes
from ..core.guidance import Guide
from ..core.host_pass import RowsInOrder
from ..core.insist import Noises, accepting
from ..core.maps import MapReader
from ..core.memory import free
from ..core.presence import Curve, presence
from ..core.schedule import Schedule
from .diffusers_loop import step_openings
from .diffusers_prompts import Condition
from .reasons import Unsupported, fewest_entities
from .seeds import SeedChoice, chosen, seeds_to_draft

MOST_ROWS = 16
"""Latents that are drafted at once, though memory would do for more."""


@dataclass(frozen=True)
class Drafter:
    """Drafts of a batch's images from any seeds; the scheduler's timesteps are set."""

    pipe: Any
    reader: MapReader
    noise: Callable[[Sequence[int]], Tensor]
    """First noise ``[seeds, ...]``."""
    condition: Condition
    negative: Condition
    guidance_scale: float
    guide: Guide | None = None
    """Who moves the run that is to follow, and its drafts; None: nobody does."""
    score: Score = presence

    def moves(self, image: int) -> bool:
        """Is this image one that guidance moves?"""
        if self.guide is None:
            return False
        gradient = self.guide.gradient
        return len(gradient.reader.images[image].entities) >= fewest_entities(gradient.loss)

    def at_once(self, images: int) -> int:
        """How many are drafted at once for so many ``images``: with guidance no more than a step of the run takes the
        gradient of, where nobody knows how much memory is left."""
        guided = self.guide is not None and free(self.pipe.unet.device) is None
        return min(MOST_ROWS, images) if guided else MOST_ROWS

    def __call__(self, images: Sequence[int], seeds: Sequence[int]) -> list[Draft]:
        """One of each of ``images``, from its seed; guided where :meth:`moves` says so of all of them.

        Raises Unsupported for a prediction that is not known, MoveFailed where guidance fails, and the end of memory.
        """
        pipe, cfg, count = self.pipe, self.guidance_scale > 1, len(images)
        kept = pipe.scheduler.alphas_cumprod.double().cpu()
        noise_levels = ((1 - kept) / kept).sqrt()
        run_levels = [float(noise_levels[round(float(timestep))]) for timestep in pipe.scheduler.timesteps]
        first = run_levels[0]
        own = self.condition.of(images)
        given = self.negative.of(images).before(own) if cfg else own

        def timestep_of(sigma: float) -> int:
            return int((noise_levels <= sigma * (1 + 1e-6)).sum().clamp(min=1)) - 1

        def unet(z: Tensor, sigma: float, condition: Condition) -> Tensor:
            made: Tensor = pipe.unet(
                z, timestep_of(sigma), encoder_hidden_states=condition.embeds,
                added_cond_kwargs=condition.extra or None, return_dict=False,
            )[0]  # fmt: skip
            return made

        def denoise(x: Tensor, sigma: float) -> Tensor:
            z = x / math.sqrt(1 + sigma**2)
            out = unet(torch.cat([z, z]) if cfg else z, sigma, given)
            if cfg:
                out = out[:count] + self.guidance_scale * (out[count:] - out[:count])
            kind = pipe.scheduler.config.prediction_type
            if kind == "epsilon":
                return x - sigma * out
            if kind == "v_prediction":
                return (z - sigma * out) / math.sqrt(1 + sigma**2)
            raise Unsupported(f"a model that predicts {kind!r} can't be drafted; those that predict noise or v can")

        plans = [self.reader.images[image] for image in images]
        guide = self.guide if all(map(self.moves, images)) else None
        steps = [level for level, opens in zip(run_levels, step_openings(pipe.scheduler)) if opens]
        sigmas, pooled = passes(first, steps if guide else (), guide.schedule if guide else Schedule())

        def moving(guide: Guide) -> Move:
            def move(x: Tensor, k: int) -> Tensor:
                sigma, scale = sigmas[k], math.sqrt(1 + sigmas[k] ** 2)
                z = x / scale
                moved = guide.drafted(
                    z, pooled[k], len(steps), lambda z, rows: unet(z, sigma, own.of(rows)), noise=sigma
                )
                return x if moved is z else moved * scale

            return move

        before = count if cfg else 0
        return draft(
            denoise, self.noise(seeds) * math.sqrt(1 + first**2), sigmas, pipe.unet,
            MapReader(self.reader.layers, plans), lambda: RowsInOrder(count, before, (before,)),
            moving(guide.of(plans)) if guide else None, 1, self.score,
        )  # fmt: skip


@dataclass
class Search:
    """Of each image of a batch, which of its seeds' noise is drawn.

    ``curve``: where a draft can be accepted by it, no more are made than until one is.
    """

    drafter: Drafter
    asked: Sequence[int]
    count: int
    curve: Curve | None = None
    seeds: list[list[int]] = field(init=False)
    images: list[Noises] = field(init=False)
    numbers: list[int] = field(init=False)
    """Of each image, which of its seeds is drawn."""

    def __post_init__(self) -> None:
        self.seeds = [seeds_to_draft(seed, self.count) for seed in self.asked]
        self.images = [Noises(self.count, accepting(self.curve)) for _ in self.asked]
        self.numbers = [0] * len(self.asked)

    def draft(self, images: Sequence[int]) -> None:
        """Make the drafts that are wanted for ``images``, and let the best be drawn. Raises what hinders them."""
        named = [image for image in images if image in self.drafter.reader.named]
        by_itself = self.curve is not None and self.curve.draft is not None
        while wanting := [image for image in named if self.images[image].wants_draft]:
            missing = {image: range(len(self.images[image].drafts), self.count) for image in wanting}
            todo = [(image, number) for image, own in missing.items() for number in (own[:1] if by_itself else own)]
            for moved in (True, False):
                self._make([one for one in todo if self.drafter.moves(one[0]) == moved])
        for image in named:
            self.numbers[image] = self.images[image].next() if self.images[image].left else self.images[image].surest()

    def _make(self, todo: Sequence[tuple[int, int]]) -> None:
        """The drafts of these images' seeds of these numbers."""

        def make(group: Sequence[int]) -> list[Draft]:
            own = [todo[k] for k in group]
            return self.drafter([image for image, _ in own], [self.seeds[image][number] for image, number in own])

        for (image, _), one in zip(todo, in_groups(make, len(todo), self.drafter.at_once(len(self.asked)))):
            self.images[image].drafts.append(one)

    @property
    def drawn(self) -> list[int]:
        """The images' seeds."""
        return [own[number] for own, number in zip(self.seeds, self.numbers)]

    @property
    def choices(self) -> list[SeedChoice | None]:
        """What is told of each image; None where its prompt names nothing to look for."""
        return [chosen(*own) if own[1].drafts else None for own in zip(self.seeds, self.images, self.numbers)]
