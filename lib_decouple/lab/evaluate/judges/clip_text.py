"""CLIP similarity of the caption and the prompt, as Attend-and-Excite reports it over BLIP's captions.

arXiv 2301.13826, ``metrics/blip_captioning_and_clip_similarity.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Item, Missing, Options, inputs, load, load_processor
from .clip import tokens


class ClipText:
    """Cosine of two texts' embeddings, -1 to 1, for the whole image only."""

    kind = "clip-text"
    threshold = None

    def __init__(self, source: str, options: Options) -> None:
        self.source, self.options = source, options
        self.name = f"{self.kind}:{source}"
        self.model = load(source, options, self.kind, "CLIPModel")
        self.tokenizer = load_processor(source, self.kind, "AutoTokenizer")

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """Raises :class:`Missing` for an item without caption."""
        import torch
        from torch.nn.functional import cosine_similarity

        captions = [item.caption for item in items if item.caption is not None]
        if len(captions) < len(items):
            raise Missing("images have no captions yet; name caption:MODEL too")
        longest = self.model.config.text_config.max_position_embeddings
        given = tokens(self.tokenizer, captions + [item.prompt for item in items], longest)
        with torch.inference_mode():
            read = self.model.text_model(**inputs(given, self.options)).pooler_output
            found = self.model.text_projection(read).float()
        return [{"": float(c)} for c in cosine_similarity(found[: len(items)], found[len(items) :]).cpu()]
