"""How a diffusers pipeline reads prompts: tokens and their places, and what the UNet is given for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.gradient import rows
from ..core.maps import Entity, ImagePlan
from ..prompt.align import Piece, align

BACKTRACK = 20
"""A full chunk ends behind its last comma where that is at most so many tokens before, as in the WebUIs."""


def chunks(pipe: Any, prompt: str) -> list[list[int]]:
    """The numbers of a prompt's tokens, without start and end, in chunks that the encoder can read; at least one."""
    tokenizer = pipe.tokenizer
    most = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    found: list[list[int]] = [[]]
    for token in tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids:
        own = found[-1]
        if len(own) == most:
            last = max((k for k, one in enumerate(own) if one == comma), default=-1)
            moved = own[last + 1 :] if token != comma and last >= 0 and most - last <= BACKTRACK else []
            del own[most - len(moved) :]
            found.append(moved)
        found[-1].append(token)
    return found


def pieces(pipe: Any, prompt: str) -> list[Piece]:
    """A prompt's tokens with their positions in the context, by the pipeline's own tokenizer."""
    size = pipe.tokenizer.model_max_length
    return [
        Piece(number * size + k, text, chunk=number)
        for number, chunk in enumerate(chunks(pipe, prompt))
        for k, text in enumerate(pipe.tokenizer.convert_ids_to_tokens(chunk), start=1)
    ]


def plan_image(pipe: Any, prompt: str, entities: Sequence[str], skip_missing: bool = False) -> ImagePlan:
    """Where the entities stand in the prompt. Raises EntityNotFound (a ValueError) with the prompt's words, unless
    ``skip_missing`` leaves those out."""
    own = pieces(pipe, prompt)
    places = align(entities, own, missing="skip" if skip_missing else "raise")
    found = tuple(Entity(name, tokens) for name, tokens in zip(entities, places) if tokens)
    return ImagePlan(found, end=own[-1].position + 1 if own else 1)


@dataclass(frozen=True)
class Condition:
    """What the UNet is given beside latents and timestep, for each image."""

    embeds: Tensor
    """``[images, tokens, channels]``."""
    extra: dict[str, Tensor]
    """What SDXL adds."""

    def of(self, images: Sequence[int]) -> Condition:
        """The rows of some of the images, in this order."""
        return Condition(rows(self.embeds, images), {k: rows(v, images) for k, v in self.extra.items()})

    def before(self, other: Condition) -> Condition:
        """The rows of this one, then those of ``other``."""
        extra = {k: torch.cat([v, other.extra[k]]) for k, v in self.extra.items()}
        return Condition(torch.cat([self.embeds, other.embeds]), extra)


def encoded(pipe: Any, prompts: Sequence[str], negative: str) -> dict[str, Tensor]:
    """What to hand to the pipeline instead of texts: none where all fit into one chunk, which it reads itself."""
    texts = [chunks(pipe, prompt) for prompt in (*prompts, negative)]
    count = max(map(len, texts))
    if count == 1:
        return {}
    filled = [own + [[]] * (count - len(own)) for own in texts]
    embeds, pooled = zip(*(_encode(pipe, [row[k] for row in filled]) for k in range(count)))
    joined = torch.cat(embeds, dim=1)
    n = len(prompts)
    found = {"prompt_embeds": joined[:n], "negative_prompt_embeds": joined[n:].repeat(n, 1, 1)}
    if pooled[0] is not None:
        found["pooled_prompt_embeds"] = pooled[0][:n]
        found["negative_pooled_prompt_embeds"] = pooled[0][n:].repeat(n, 1)
    return found


def negatives(encoded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what :func:`encoded` gave, that of the negative prompts in the place of the prompts'."""
    return {key.removeprefix("negative_"): own for key, own in encoded.items() if key.startswith("negative_")}


def _encode(pipe: Any, chunk: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """One chunk of each text: its context ``[rows, tokens, channels]`` and, of SDXL, what is pooled of it."""
    contexts, pooled = [], None
    xl = hasattr(pipe, "tokenizer_2")
    for which in ("", "_2") if xl else ("",):
        tokenizer, encoder = getattr(pipe, f"tokenizer{which}"), getattr(pipe, f"text_encoder{which}")
        size, pad = tokenizer.model_max_length, tokenizer.pad_token_id
        ids = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in chunk]
        numbers = torch.tensor([row + [pad] * (size - len(row)) for row in ids], device=pipe.unet.device)
        read = encoder(numbers, output_hidden_states=xl)
        contexts.append(read.hidden_states[-2] if xl else read[0])
        pooled = read[0] if xl else None
    return torch.cat(contexts, dim=-1).to(pipe.unet.dtype), pooled


def condition(
    pipe: Any, prompts: list[str], height: int, width: int, given: dict[str, Tensor] | None = None
) -> Condition:
    """The conditional rows' context and what SDXL adds to it; ``given``: of :func:`encoded`."""
    xl = hasattr(pipe, "tokenizer_2")
    if given:
        embeds, pooled = given["prompt_embeds"], given.get("pooled_prompt_embeds")
    else:
        read = pipe.encode_prompt(
            prompts, device=pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        embeds, pooled = read[0], read[2] if xl else None
    if not xl or pooled is None:
        return Condition(embeds, {})
    times = pipe._get_add_time_ids(
        (height, width), (0, 0), (height, width), dtype=embeds.dtype, text_encoder_projection_dim=pooled.shape[-1]
    )
    added = {"text_embeds": pooled, "time_ids": times.to(pooled.device).repeat(len(prompts), 1)}
    return Condition(embeds, added)
