"""Anima: a transformer over patches of two by two latents, whose every block attends to the text.

Forge Neo's (``backend.nn.anima``) and diffusers' (``CosmosTransformer3DModel``). It is a rectified flow over latents
``[batch, channels, frames, height, width]`` of one frame: :func:`lib_decouple.core.schedule.flow_scale` says what an
update is there. The text's columns are tokens of T5, without a start token; behind its end token stand zeros up to 512,
which the model attends to as to any other column, and so do the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core.maps import CrossAttentionLayer, Part, Projections, Reader, to_q_and_to_k
from ..profiles import Profile
from ..prompt.align import WORD_END, Piece
from .base import Level

PROFILE = Profile(
    "Anima",
    "The settings of models that are not known, chosen by reasoning: nothing trained in this layout was at hand.",
    measured=False,
)
LEVEL = Level(2, "middle")
"""The middle third of the blocks [I]: behind it the pass ends. Where a trained one localises best was not measured."""

WORD_BEGIN = "▁"
"""T5's mark on the first token of a word."""


def q_proj_and_k_proj(module: nn.Module) -> Projections:
    """The reader of Forge Neo's: norms in each head, and no rotation where the keys are a text's."""
    parts: Any = module
    return Projections(parts.q_proj, parts.k_proj, int(parts.n_heads), query_norm=parts.q_norm, key_norm=parts.k_norm)


COLUMNS = 512
"""Of every text."""
_LAYOUTS: tuple[tuple[str, str, str, Reader], ...] = (
    ("blocks", "cross_attn", "q_proj", q_proj_and_k_proj),
    ("transformer_blocks", "attn2", "to_q", to_q_and_to_k),
)
"""A host's names for the list of blocks, a block's cross-attention, and its queries' projection; and what reads it."""
_THIRDS: tuple[Part, ...] = ("down", "middle", "up")


def cross_attention_layers(network: nn.Module) -> list[CrossAttentionLayer]:
    """Each block's, in order of execution, their depth in thirds named as a UNet's paths; none for other networks."""
    for blocks, attention, query, reader in _LAYOUTS:
        modules = [getattr(block, attention, None) for block in getattr(network, blocks, ())]
        if (factor := _patch(network)) and modules and all(hasattr(module, query) for module in modules):
            return [
                CrossAttentionLayer(
                    f"{blocks}.{i}.{attention}", module, factor, reader, _THIRDS[3 * i // len(modules)], COLUMNS
                )
                for i, module in enumerate(modules)
                if isinstance(module, nn.Module)
            ]
    return []


def _patch(network: nn.Module) -> int:
    """Latents along a side of one of its patches; 0 for a network whose patches have no frames."""
    size = getattr(getattr(network, "config", None), "patch_size", 0)
    return int(getattr(network, "patch_spatial", 0) or (size[1] if isinstance(size, (tuple, list)) else 0))


def pieces(tokens: Sequence[str]) -> list[Piece]:
    """A text's T5 tokens, as the vocabulary has them and without its end token, with their positions in the context.

    A word ends where the next begins, and signs are words of their own, as CLIP's tokenizer has them.
    """
    texts = [token.replace(WORD_BEGIN, "") for token in tokens]
    found = []
    for position, text in enumerate(texts):
        if not text:
            continue  # a blank alone, before what the vocabulary has no token with a blank for
        following = tokens[position + 1] if position + 1 < len(tokens) else WORD_BEGIN
        ends = following.startswith(WORD_BEGIN) or _is_sign(text) or _is_sign(following)
        found.append(Piece(position, text + WORD_END if ends else text))
    return found


def _is_sign(token: str) -> bool:
    return not any(map(str.isalnum, token))
