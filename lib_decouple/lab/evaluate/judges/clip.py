"""CLIP similarity of image and text: the whole prompt, and each entity's part of it.

Attend-and-Excite (arXiv 2301.13826, ``metrics/compute_clip_similarity.py``) reports the first and the least of the
second. Its script averages each text over the 80 ImageNet sentences of Radford et al. (arXiv 2103.00020); here a text
stands for itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from .base import Item, Options, inputs, load, load_processor, rgb
from .words import parts


class Clip:
    """Cosine of the image's and the text's embedding, -1 to 1: "" for the prompt, and one for each entity's part."""

    kind = "clip"
    threshold = None

    def __init__(self, source: str, options: Options) -> None:
        self.source, self.options = source, options
        self.name = f"{self.kind}:{source}"
        self._load()

    def _load(self) -> None:
        self.model = load(self.source, self.options, self.kind, "CLIPModel")
        self.processor = load_processor(self.source, self.kind)

    def embed(self, items: Sequence[Item], texts: list[str]) -> tuple[Any, Any]:
        """Embeddings ``[images, width]`` and ``[texts, width]``."""
        longest = self.model.config.text_config.max_position_embeddings
        given = tokens(self.processor.tokenizer, texts, longest)
        given["pixel_values"] = self.processor(images=rgb(items), return_tensors="pt")["pixel_values"]
        found = self.model(**inputs(given, self.options))
        return found.image_embeds, found.text_embeds

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """Cosines. What of a text is beyond the model's longest is not read; a warning says so."""
        import torch
        from torch.nn.functional import normalize

        wanted = [{"": item.prompt} | dict(zip(item.entities, parts(item.prompt, item.entities))) for item in items]
        texts = list(dict.fromkeys(text for own in wanted for text in own.values()))
        with torch.inference_mode():
            image, text = (normalize(e.float(), dim=-1) for e in self.embed(items, texts))
            cosines = (image @ text.T).cpu()
        return [{key: float(row[texts.index(t)]) for key, t in own.items()} for row, own in zip(cosines, wanted)]


def tokens(tokenizer: Any, texts: list[str], longest: int) -> dict[str, Any]:
    """CLIP's token ids and mask, cut at ``longest`` tokens (77 mostly)."""
    if any(len(own) > longest for own in tokenizer(texts)["input_ids"]):
        warnings.warn(f"a text is longer than CLIP's {longest} tokens; the rest is not read", stacklevel=2)
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"))
