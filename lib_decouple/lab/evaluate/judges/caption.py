"""Captioning: let a model describe the image, then see which entities the caption names.

BLIP (arXiv 2201.12086), GIT (arXiv 2205.14100) or any model that ``transformers`` has for image to text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .answers import CLASSES
from .base import Item, Missing, Options, inputs, load, load_processor, rgb
from .words import named

LONGEST, BEAMS = 30, 3
"""Tokens written, and beams: what BLIP's authors caption with, as Attend-and-Excite does."""

REQUEST = {"instructblip": "A short image caption.", "blip-2": "a photo of"}
"""What the authors of that type of model ask it with."""
CHAT_REQUEST = "Describe this image in one sentence."


class Caption:
    """1 for each entity that the caption names, else 0; "" for the share of entities named."""

    kind = "caption"
    threshold = 0.5

    def __init__(self, source: str, options: Options) -> None:
        self.source, self.options = source, options
        self.name = f"{self.kind}:{source}"
        self.model = load(source, options, self.kind, *CLASSES)
        self.processor = load_processor(source, self.kind)
        if not hasattr(self.processor, "image_processor"):  # ViT with GPT-2 comes as two parts
            self.processor = load_processor(source, self.kind, "AutoImageProcessor")
        self.tokenizer = load_processor(source, self.kind, "AutoTokenizer")

    def captions(self, items: Sequence[Item]) -> list[str]:
        """What the model writes of each image."""
        import torch

        if not items:
            return []
        request = REQUEST.get(self.model.config.model_type)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": CHAT_REQUEST}]
            request = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        given: dict[str, Any] = {"images": rgb(items)} | ({"text": [request] * len(items)} if request else {})
        asked = inputs(self.processor(**given, return_tensors="pt"), self.options)
        with torch.inference_mode():
            written = self.model.generate(**asked, max_new_tokens=LONGEST, num_beams=BEAMS, do_sample=False)
        # Some models give the request back before what they write.
        read = asked.get("input_ids")
        if read is not None and written.shape[1] >= read.shape[1] and bool((written[:, : read.shape[1]] == read).all()):
            written = written[:, read.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """Raises :class:`Missing` for an item without caption."""
        found = []
        for item in items:
            if item.caption is None:
                raise Missing("an image has no caption")
            said = {entity: float(seen) for entity, seen in named(item.caption, item.entities).items()}
            found.append(said | ({"": sum(said.values()) / len(said)} if said else {}))
        return found
