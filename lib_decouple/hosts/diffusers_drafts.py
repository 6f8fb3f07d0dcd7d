"""``look: choose`` with the diffusers pipelines: drafts by the pipeline's own UNet, under its own guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.drafts import Draft, best, draft, in_groups, levels
from ..core.host_pass import RowsInOrder
from ..core.maps import MapReader
from .reasons import Unsupported
from .seeds import Choice, seeds_to_draft

MOST_ROWS = 16
"""Latents that are drafted at once, though memory would do for more."""


@dataclass(frozen=True)
class Condition:
    """What the UNet is given beside latents and timestep, for each image."""

    embeds: Tensor
    """``[images, tokens, channels]``."""
    extra: dict[str, Tensor]
    """What SDXL adds."""

    def repeated(self, count: int) -> Condition:
        """For ``count`` times the images, one set behind the other."""
        return Condition(torch.cat([self.embeds] * count), {k: torch.cat([v] * count) for k, v in self.extra.items()})

    def before(self, other: Condition) -> Condition:
        """The rows of this one, then those of ``other``."""
        extra = {k: torch.cat([v, other.extra[k]]) for k, v in self.extra.items()}
        return Condition(torch.cat([self.embeds, other.embeds]), extra)


def choose(
    pipe: Any, reader: MapReader, seeds: Sequence[int], count: int, noise: Callable[[Sequence[int]], Tensor],
    condition: Condition, negative: Condition, guidance_scale: float,
) -> list[Choice | None]:  # fmt: skip
    """Of each image which of ``count`` seeds drafts best; None where its prompt names nothing to look for.

    ``noise`` makes the first noise ``[images, ...]`` of seeds; the scheduler's timesteps are set. Raises Unsupported
    for a prediction that is not known, and the end of memory where the drafts of one seed each do not fit.
    """
    if not reader.named:
        return [None] * len(seeds)
    candidates = [seeds_to_draft(seed, count) for seed in seeds]
    kept = pipe.scheduler.alphas_cumprod.double().cpu()
    noise_levels = ((1 - kept) / kept).sqrt()
    first = float(noise_levels[round(float(pipe.scheduler.timesteps[0]))])
    images = len(seeds)

    def make(group: Sequence[int]) -> list[list[Draft]]:
        x = torch.cat([noise([own[k] for own in candidates]) for k in group]) * math.sqrt(1 + first**2)
        rows, guided = len(x), guidance_scale > 1
        own, nothing = condition.repeated(len(group)), negative.repeated(len(group))
        given = nothing.before(own) if guided else own

        def denoise(x: Tensor, sigma: float) -> Tensor:
            timestep = int((noise_levels <= sigma * (1 + 1e-6)).sum().clamp(min=1)) - 1
            z = x / math.sqrt(1 + sigma**2)
            out = pipe.unet(
                torch.cat([z, z]) if guided else z, timestep, encoder_hidden_states=given.embeds,
                added_cond_kwargs=given.extra or None, return_dict=False,
            )[0]  # fmt: skip
            if guided:
                out = out[:rows] + guidance_scale * (out[rows:] - out[:rows])
            kind = pipe.scheduler.config.prediction_type
            if kind == "epsilon":
                return x - sigma * out
            if kind == "v_prediction":
                return (z - sigma * out) / math.sqrt(1 + sigma**2)
            raise Unsupported(f"a model that predicts {kind!r} can't be drafted; those that predict noise or v can")

        many = MapReader(reader.layers, [*reader.images] * len(group))
        others = rows if guided else 0
        made = draft(denoise, x, levels(first), pipe.unet, many, lambda: RowsInOrder(rows, others, (others,)))
        return [made[k * images : (k + 1) * images] for k in range(len(group))]

    made = in_groups(make, count, max(1, MOST_ROWS // images))
    found: list[Choice | None] = []
    for image, own in enumerate(candidates):
        drafts = [one[image] for one in made]
        scores = {seed: one.scores for seed, one in zip(own, drafts)}
        found.append(Choice(own[0], own[best(drafts)], scores) if drafts[0].scores else None)
    return found
