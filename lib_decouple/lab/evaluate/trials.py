"""What is tried as arms of ``study missing`` before anybody can choose it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from ...core import losses

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


TRIALS: dict[str, Callable[[Tensor], Tensor]] = {"gated": gated, "peaked": peaked}
"""Name of a trial's arm -> its loss."""
WEIGHED = "com weighed"
"""The arm whose strength goes by presence (:class:`lib_decouple.core.presence.Helping`)."""
NAMES = (*TRIALS, WEIGHED)
