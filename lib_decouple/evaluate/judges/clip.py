"""CLIP similarity as Attend-and-Excite reports it: full prompt, each entity, and text with caption.

Through ``transformers``: open_clip would need torchvision, which this machine's test set-up cannot have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Item, Missing, Options, load, load_processor


class _Model:
    threshold = None

    def __init__(self, source: str, options: Options) -> None:
        self.source, self._options = source, options
        self._model = load("CLIPModel", source, options, self.name)
        self._processor = load_processor(source, self.name)

    name = "clip"

    def _texts(self, texts: Sequence[str]) -> Any:
        """Unit vectors ``[n, d]``; each text is computed once."""
        import torch

        unique = list(dict.fromkeys(texts))
        length = self._model.config.text_config.max_position_embeddings
        prepared = self._processor.tokenizer(
            unique, return_tensors="pt", padding=True, truncation=True, max_length=length
        ).to(self._options.device)
        with torch.no_grad():
            found = _unit(self._model.get_text_features(**prepared))
        return found[[unique.index(text) for text in texts]]

    def _images(self, items: Sequence[Item]) -> Any:
        """Unit vectors ``[n, d]``."""
        import torch

        pixels = self._processor.image_processor([i.image.convert("RGB") for i in items], return_tensors="pt")
        with torch.no_grad():
            return _unit(
                self._model.get_image_features(
                    pixel_values=pixels["pixel_values"].to(self._options.device, self._options.torch_dtype)
                )
            )


def _unit(features: Any) -> Any:
    # transformers 5 wraps the projected features in an output object.
    found = getattr(features, "pooler_output", features).float()
    return found / found.norm(dim=-1, keepdim=True)


class Clip(_Model):
    """Cosine of the image with the prompt ("") and with "a {entity}" for each; the report takes the least-served."""

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """In [-1, 1]."""
        phrases = [[item.prompt, *(with_article(e) for e in item.entities)] for item in items]
        images, texts = self._images(items), self._texts([p for own in phrases for p in own])
        found, start = [], 0
        for image, item, own in zip(images, items, phrases):
            cosines = (texts[start : start + len(own)] @ image).tolist()
            start += len(own)
            found.append(dict(zip(("", *item.entities), cosines)))
        return found


class ClipText(_Model):
    """Cosine of the prompt with the caption that a captioning judge wrote of the image."""

    name = "clip-text"

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """In [-1, 1]. Raises :class:`Missing` where an image has no caption."""
        if any(item.caption is None for item in items):
            raise Missing("some images have no caption; add caption:FOLDER to --judges")
        prompts, captions = self._texts([i.prompt for i in items]), self._texts([i.caption or "" for i in items])
        return [{"": float(value)} for value in (prompts * captions).sum(-1)]


def with_article(entity: str) -> str:
    """``"owl"`` -> "an owl"."""
    return f"{'an' if entity[:1].lower() in 'aeiou' else 'a'} {entity}"
