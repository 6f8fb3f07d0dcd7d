"""Visual question answering: "is there a cat?" for each entity, and how likely "yes" is against "no".

The paper (arXiv 2410.20972) and TIAM's kin ask so; the models are BLIP-VQA (arXiv 2201.12086), ViLT (arXiv 2102.03334)
or any that ``transformers`` has for visual question answering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .answers import CLASSES, Writer
from .base import Item, Missing, Options, by_shape, load, load_processor
from .words import question


class Vqa:
    """P(yes) / (P(yes) + P(no)) for each entity, 0 to 1; below 0.5 the entity is missing."""

    kind = "vqa"
    threshold = 0.5

    def __init__(self, source: str, options: Options) -> None:
        self.source = source
        self.name = f"{self.kind}:{source}"
        self.against = reader(source, options, self.kind)

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """One question an entity."""
        pairs = [(item.image.convert("RGB"), question(entity)) for item in items for entity in item.entities]
        found = iter(self.against(pairs)) if pairs else iter(())
        return [{entity: next(found) for entity in item.entities} for item in items]


def reader(source: str, options: Options, kind: str) -> Any:
    """(image, question) pairs -> P(yes) against no, by what kind of model stands at ``source``."""
    config = load_processor(source, kind, "AutoConfig")
    if config.model_type == "blip":
        return _Blip(source, options, kind)
    labels = {str(label).lower(): place for label, place in (getattr(config, "label2id", None) or {}).items()}
    if {"yes", "no"} <= set(labels):
        return _Classifier(source, options, kind, labels["yes"], labels["no"])
    if config.model_type == "vilt":
        raise Missing(f"{source} has no labels yes and no; it is not a model for visual question answering")
    return _Writer(source, options, kind)


class _Blip:
    """BLIP's decoder as it ranks given answers: the likelihood of the whole answer with its end."""

    def __init__(self, source: str, options: Options, kind: str) -> None:
        self.model = load(source, options, kind, "BlipForQuestionAnswering")
        self.processor, self.options = load_processor(source, kind), options

    def __call__(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[float]:
        asked = [self.processor(images=image, text=text, return_tensors="pt") for image, text in pairs]
        names = ("pixel_values", "input_ids", "attention_mask")
        return by_shape([{n: own[n] for n in names} for own in asked], self.options, self._yes).tolist()

    def _yes(self, asked: dict[str, Any]) -> Any:
        image = self.model.vision_model(pixel_values=asked["pixel_values"])[0]
        read = self.model.text_encoder(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], encoder_hidden_states=image
        )[0]
        return (self._likelihood(read, "yes") - self._likelihood(read, "no")).sigmoid()

    def _likelihood(self, read: Any, answer: str) -> Any:
        """Log-likelihood ``[pairs]`` of the answer after the question read with the image."""
        import torch

        words = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([self.model.decoder_start_token_id, *words, self.model.config.text_config.sep_token_id])
        ids = ids.to(read.device).expand(len(read), -1)
        logits = self.model.text_decoder(input_ids=ids[:, :-1], encoder_hidden_states=read).logits
        return logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).sum((1, 2))


class _Classifier:
    """A model with one output an answer, such as ViLT."""

    def __init__(self, source: str, options: Options, kind: str, yes: int, no: int) -> None:
        self.model = load(source, options, kind, "AutoModelForVisualQuestionAnswering")
        self.processor, self.options, self.yes, self.no = load_processor(source, kind), options, yes, no

    def __call__(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[float]:
        asked = [dict(self.processor(images=image, text=text, return_tensors="pt")) for image, text in pairs]
        return by_shape(asked, self.options, self._yes).tolist()

    def _yes(self, asked: dict[str, Any]) -> Any:
        logits = self.model(**asked).logits.float()
        return (logits[:, self.yes] - logits[:, self.no]).sigmoid()


class _Writer:
    """A model that writes its answer, such as BLIP-2: by the answer's first token."""

    def __init__(self, source: str, options: Options, kind: str) -> None:
        self.writer = Writer(source, options, kind, *CLASSES)

    def __call__(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[float]:
        first = self.writer.first(pairs)
        yes, no = (self.writer.log_probability(first, word) for word in ("yes", "no"))
        return (yes - no).sigmoid().tolist()
