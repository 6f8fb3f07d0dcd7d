"""The families of denoisers that can be guided in a WebUI, and what of each has to be known.

A new one is a small file with its cross-attention layers (and a reader, where its queries and keys are made otherwise
than by ``to_q`` and ``to_k``; see :class:`lib_decouple.core.maps.Projections`), and a line in :data:`DENOISERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ..core.maps import CrossAttentionLayer
from . import anima, ldm
from .base import Level, unet_level
from .reasons import Unsupported


@dataclass(frozen=True)
class Denoisers:
    """What guidance has to know of a family of denoisers."""

    layers: Callable[[nn.Module], list[CrossAttentionLayer]]
    """A network's cross-attention, in order of execution; none for one of another family."""
    level: Callable[[Sequence[CrossAttentionLayer]], Level]
    """Where maps are read when the user does not say."""


DENOISERS = (
    Denoisers(ldm.cross_attention_layers, unet_level),
    Denoisers(anima.cross_attention_layers, lambda _: anima.LEVEL),
)


def cross_attention_layers(network: nn.Module) -> list[CrossAttentionLayer]:
    """Every cross-attention that can be read, in order of execution. Raises Unsupported for a network of no family."""
    return _family_of(network).layers(network)


def default_level(network: nn.Module) -> Level:
    """Where maps are read when the user does not say. Raises Unsupported for a network of no family."""
    family = _family_of(network)
    return family.level(family.layers(network))


def _family_of(network: nn.Module) -> Denoisers:
    for family in DENOISERS:
        if family.layers(network):
            return family
    raise Unsupported(
        "this model can't be guided: those with the UNet of Stable Diffusion 1.x, 2.x or XL can, and Anima; those with "
        "joint attention (Flux, SD 3, Chroma) can't"
    )
