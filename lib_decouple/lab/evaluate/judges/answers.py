"""How likely a model that writes text after an image begins its answer with "yes" or "no"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .base import Missing, Options, by_shape, load, load_processor

CLASSES = ("AutoModelForImageTextToText", "AutoModelForVision2Seq")
"""The name since transformers 4.46, and the one until 4.57."""


class Writer:
    """A ``transformers`` model for image and text to text: BLIP-2, InstructBLIP, GIT, LLaVA and its kin."""

    def __init__(self, source: str, options: Options, kind: str, *classes: str) -> None:
        self.model = load(source, options, kind, *(classes or CLASSES))
        self.processor = load_processor(source, kind)
        self.options, self.source, self.kind = options, source, kind

    def ask(self, image: Image.Image, question: str) -> dict[str, Any]:
        """The model's inputs for one question in its own form: its chat template, or what its paper asks with."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        elif self.model.config.model_type == "blip-2":
            text = f"Question: {question} Answer:"
        else:
            text = question
        asked = dict(self.processor(images=image, text=text, return_tensors="pt"))
        if self.model.config.model_type == "git":  # goes on from the question, which the tokenizer has closed
            return {n: v if n == "pixel_values" else v[:, :-1] for n, v in asked.items() if n != "token_type_ids"}
        return asked

    def first(self, pairs: Sequence[tuple[Image.Image, str]]) -> Any:
        """Log-probability of each token of the vocabulary as the answer's first: ``[pairs, tokens]``."""
        return by_shape([self.ask(image, question) for image, question in pairs], self.options, self._first)

    def _first(self, asked: dict[str, Any]) -> Any:
        made = self.model.generate(
            **asked,
            max_new_tokens=1,
            min_new_tokens=1,
            num_beams=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return made.logits[0].float().log_softmax(-1)

    def log_probability(self, first: Any, word: str) -> Any:
        """Of an answer that begins with ``word``, in either case: sums :meth:`first` over its spellings."""
        spelt = [self.processor.tokenizer.encode(s, add_special_tokens=False) for s in spellings(word)]
        unknown = self.processor.tokenizer.unk_token_id
        ids = sorted({own[0] for own in spelt if len(own) == 1 and own[0] != unknown})
        if not ids:
            raise Missing(f"{self.source} has no token for {word!r}")
        return first[:, ids].logsumexp(-1)


def spellings(word: str) -> list[str]:
    """``yes``, ``Yes``, ``YES``, and each after a space."""
    return [space + form for space in ("", " ") for form in (word, word.capitalize(), word.upper())]
