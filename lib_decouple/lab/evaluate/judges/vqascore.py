"""VQAScore (arXiv 2404.01291): how likely a model is to answer "yes" when asked whether the image shows the text."""

from __future__ import annotations

from collections.abc import Sequence

from .answers import Writer
from .base import Item, Options
from .words import parts

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
"""The paper's."""


class VqaScore:
    """P("yes" | image, question), 0 to 1, over the model's whole vocabulary: "" for the prompt, and one for each
    entity's part of it; below 0.5 the entity is missing."""

    kind = "vqascore"
    threshold = 0.5

    def __init__(self, source: str, options: Options) -> None:
        self.source = source
        self.name = f"{self.kind}:{source}"
        self.writer = Writer(source, options, self.kind)

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """One question for the prompt and one an entity."""
        wanted = [{"": item.prompt} | dict(zip(item.entities, parts(item.prompt, item.entities))) for item in items]
        pairs = [
            (item.image.convert("RGB"), QUESTION.format(text))
            for item, own in zip(items, wanted)
            for text in own.values()
        ]
        if not pairs:
            return []
        found = iter(self.writer.log_probability(self.writer.first(pairs), "yes").exp().tolist())
        return [{key: next(found) for key in own} for own in wanted]
