"""What the WebUIs built on CompVis' ``ldm`` share: their UNets, their text chunks, k-diffusion's samplers.

Knows no host: a host's parts are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..core.maps import CrossAttentionLayer, Entity, ImagePlan
from ..prompt.align import PART, Piece, align
from ..prompt.relations import choose_of_parts, placed
from ..prompt.syntax import Dialect
from .reasons import Unsupported

_ONE_CALL = {
    *("sample_euler", "sample_euler_ancestral", "sample_lms", "sample_dpmpp_2m", "sample_dpmpp_2m_sde"),
    *("sample_dpmpp_3m_sde", "sample_ipndm", "sample_ipndm_v", "sample_deis", "sample_ddpm"),
    *("ddim", "ddim_cfgpp", "unipc"),
    *("sample_er_sde", "sample_res_multistep"),
    *("sample_euler_cfg_pp", "sample_euler_ancestral_cfg_pp", "sample_dpmpp_2m_cfg_pp"),
}
_TWO_CALLS = {
    *("sample_heun", "sample_dpm_2", "sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral", "sample_dpmpp_sde"),
    *("sample_dpmpp_2s_ancestral_RF", "restart_sampler"),
}
_LOST = {
    "sample_lcm": "the LCM sampler goes on with the denoised image alone, so a change of its latents is lost; "
    "choose another, such as Euler or DPM++ 2M",
    # Its noise is (copy - denoised) / sigma: a change of the copy comes back with its sign turned.
    "sample_unipc": "this WebUI's UniPC gives the denoiser a copy of its latents, and takes a change of it for noise; "
    "choose another sampler, such as Euler or DPM++ 2M",
}


_ENCODED = Dialect(comments=False)
"""Of a text whose comments the host has taken away."""


def cross_attention_layers(unet: nn.Module) -> list[CrossAttentionLayer]:
    """Every ``attn2`` of an ldm or sgm UNet in order of execution; none for another network."""
    parts: Any = unet
    if not all(hasattr(parts, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        return []
    found: list[CrossAttentionLayer] = []
    factor = 1

    def walk(prefix: str, block: nn.Module) -> tuple[bool, bool]:
        kinds = {type(module).__name__ for module in block.modules()}
        for name, module in block.named_modules():
            if name.rpartition(".")[2] == "attn2":
                found.append(CrossAttentionLayer(f"{prefix}.{name}", module, factor))
        return "Downsample" in kinds, "Upsample" in kinds

    for i, block in enumerate(parts.input_blocks):
        factor *= 2 if walk(f"input_blocks.{i}", block)[0] else 1
    walk("middle_block", parts.middle_block)
    for i, block in enumerate(parts.output_blocks):
        factor //= 2 if walk(f"output_blocks.{i}", block)[1] else 1
    return found


def main_calls(sampler: str, steps: int) -> dict[int, int]:
    """Denoiser call -> sampler step, for the calls at which a change of the latents carries on.

    ``sampler`` is the name of the sampler's function, ``steps`` the length of its schedule (for
    ``sample_dpm_fast`` its calls). Raises Unsupported where no call carries, or for an unknown sampler.
    """
    if sampler in _ONE_CALL:
        starts = list(range(steps))
    elif sampler in _TWO_CALLS:
        starts = list(range(0, 2 * steps, 2))
    elif sampler == "sample_heunpp2":  # three calls a step, two at the last but one, one at the last
        starts = [3 * step for step in range(steps - 1)] + [max(0, 3 * steps - 4)]
    elif sampler == "plms":
        starts = [0, *range(2, steps + 1)]
    elif sampler == "sample_dpm_adaptive":
        starts = list(range(0, 3 * steps, 3))
    elif sampler == "sample_dpm_fast":
        starts = list(range(0, steps // 3 * 3 + (steps % 3 > 0), 3))
        if steps % 3 == 0:
            starts.append(steps - 1)
    elif sampler == "sample_Kohaku_LoNyu_Yog":  # three calls a step in the first half, one in the second
        starts = [step + 2 * min(step, steps // 2 + 1) for step in range(steps)]
    elif sampler in _LOST:
        raise Unsupported(_LOST[sampler])
    else:
        raise Unsupported(
            f"it is not known where this sampler ({sampler}) carries a change of its latents; choose another, such as "
            "Euler or DPM++ 2M"
        )
    return {call: step for step, call in enumerate(starts)}


def pieces(chunks: Sequence[Any], vocabulary: Callable[[int], str]) -> list[Piece]:
    """A prompt's tokens with their positions in the context.

    ``chunks`` are the host's ``PromptChunk``\\s: ``tokens`` (start, text, end, padding) and ``fixes``, the
    textual inversions with their offset behind the start token. ``vocabulary``: token number -> its text.
    """
    found = []
    for number, chunk in enumerate(chunks):
        embedded: dict[int, str] = {}
        for offset, embedding in chunk.fixes:
            vectors = int(embedding.vectors)
            embedded.update({offset + 1 + k: "" for k in range(vectors)})
            embedded[offset + vectors] = f"{embedding.name}</w>"
        end = chunk.tokens[-1]
        for position, token in enumerate(chunk.tokens[1:], start=1):
            if token == end and position not in embedded:
                break
            text = embedded[position] if position in embedded else vocabulary(token)
            found.append(Piece(number * len(chunk.tokens) + position, text, position in embedded, number))
    return found


def plan_image(
    texts: Sequence[str],
    wanted: Sequence[str],
    tokenize: Callable[[str], list[Piece]],
    others: Sequence[str] = (),
    skip_missing: bool = False,
    weights: Sequence[float] = (),
    dialect: Dialect = _ENCODED,
) -> ImagePlan:
    """Where the entities stand in an image's AND parts ``texts``; without ``wanted`` they are found.

    ``weights``: the parts' own, 1 each when left out; what one of 0 or less names is not found. ``dialect``: what the
    host's settings make of signs. An entity that only ``others``, the prompt's texts at other steps, name is left
    out, and so is one that none names with ``skip_missing``. Raises EntityNotFound and EntityConflict (ValueErrors).
    """
    parts = [tokenize(text) for text in texts]
    end = max((part[-1].position + 1 for part in parts if part), default=1)
    begin = min([1, *(part[0].position for part in parts if part)])
    if not wanted:
        prompt, choice = choose_of_parts(texts, weights, dialect)
        found = zip(choice.apart, placed(choice.apart, prompt, parts, dialect))
        own_entities = tuple(Entity(one.text, own, k) for one, (k, own) in found if own)
        return ImagePlan(own_entities, len(texts), end, begin)
    names = list(wanted)
    joined = [Piece(k * PART + piece.position, piece.text) for k, part in enumerate(parts) for piece in part]
    places = align(names, joined, missing="skip")
    for name, place in zip(names, places):
        if not place and not skip_missing and not any(align([name], tokenize(text), "skip")[0] for text in others):
            align([name], joined)
    entities = [
        Entity(name, tuple(token % PART for token in place if token // PART == place[0] // PART), place[0] // PART)
        for name, place in zip(names, places)
        if place
    ]
    return ImagePlan(tuple(entities), len(texts), end, begin)
