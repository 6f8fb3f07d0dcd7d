"""What is tried as arms of ``study missing`` before anybody can choose it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...core import losses
from ...core.guidance import Guide
from ...core.presence import leads
from .saga import Saga

GATE = 0.5
"""Intensity loss above which a mix's overlap term is off [F: InitNO, gsn-factory]."""
PEAK = 3
"""Power that maps are raised to before they are compared [F: FOCUS]."""


def gated(maps: Tensor) -> Tensor:
    """``intensity + 0.3*com`` of maps ``[batch, entities, h, w]``, ``com`` only where intensity is at most
    :data:`GATE`: first every entity gets a place, then the places part. ``[batch]``."""
    neglect = losses.intensity_loss(maps)
    return neglect + 0.3 * torch.where(neglect.detach() <= GATE, losses.com(maps), 0.0)


def peaked(maps: Tensor) -> Tensor:
    """``1 - mean_i KL(Q_i || mean_j Q_j) / ln E`` with ``Q = A^3 / sum A^3``: the Jensen-Shannon divergence of all E
    entities at once, 0 where no two share a place and 1 where all are alike [F: FOCUS, arXiv 2510.02315]. ``[batch]``.
    """
    flat = rearrange(maps.float(), "b e h w -> b e (h w)") ** PEAK
    share = (flat + losses.EPS**PEAK) / (flat + losses.EPS**PEAK).sum(-1, keepdim=True)
    mean = share.mean(1, keepdim=True)
    divergence = (share * (share.clamp(min=1e-30).log() - mean.clamp(min=1e-30).log())).sum(-1).mean(1)
    return 1 - divergence / math.log(max(2, maps.shape[1]))


def led(maps: Tensor) -> Tensor:
    """``max_i (1 − lead_i)``: by how much the weakest entity lacks a place of its own, where its map is higher than all
    others' (:func:`lib_decouple.core.presence.leads`, the score that tells best what will be missing). ``[batch]``.
    """
    return (1 - leads(maps)).amax(1)


def led_apart(maps: Tensor) -> Tensor:
    """``led + 0.3*com``: a place for each, and the places apart. ``[batch]``."""
    return led(maps) + 0.3 * losses.com(maps)


@dataclass(frozen=True)
class Trial:
    """How an arm is drawn, beyond what settings say."""

    loss: Callable[[Tensor], Tensor] | None = None
    """In the place of the settings'."""
    instead: Callable[[Guide, Sequence[int]], Guide] | None = None
    """Of the settings' guide and the images' seeds, what moves the latents in its place."""
    weighed: bool = False
    """Strength goes by presence (:class:`lib_decouple.core.presence.Helping`)."""
    conditional_drafts: bool = False
    """Drafts without the unconditional half of CFG, at half the cost."""
    unguided_drafts: bool = False
    """Drafts without guidance, as they were at first; they tell which seed does well without it."""
    seeds: int = 1
    """Each picture is drawn whole from so many seeds, those that ``look`` at ``choose`` drafts, and the judge of drawn
    things chooses: what choosing by drafts could reach at best. The embedded model alone has that judge."""


TRIALS: dict[str, Trial] = {
    "gated": Trial(loss=gated),
    "peaked": Trial(loss=peaked),
    "led": Trial(loss=led),
    "saga": Trial(instead=Saga.instead),
    "led+com": Trial(loss=led_apart),
    "com weighed": Trial(weighed=True),
    "choose conditional": Trial(conditional_drafts=True),
    "com choose conditional": Trial(conditional_drafts=True),
    "com choose unguided": Trial(unguided_drafts=True),
    "best of 4": Trial(seeds=4),
    "com best of 4": Trial(seeds=4),
}
"""By the name of the arm in :mod:`arms`, which has the settings."""
