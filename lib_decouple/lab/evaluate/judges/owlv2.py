"""Presence and counts by open-vocabulary detection: OWLv2 (Minderer et al., arXiv 2306.09683)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .base import Item, Options, by_shape, load, load_processor
from .words import described, with_article

QUERY = "a photo of {}"
"""The authors' first template; their sentences over 7 templates are not averaged here."""

SAME = 0.7
"""Boxes of this intersection over union are one thing, whatever they are called."""

MOST = 50
"""Boxes of one entity that are looked at, the best ones."""

Thing = tuple[str, float, tuple[float, ...]]
"""Entity, score and box ``x0, y0, x1, y1`` in shares of the image padded to a square."""


class Owlv2:
    """The best score of a box that is the entity's, 0 to 1; "" is the share of entities found as often as named.

    A box is that entity's whose query it answers best, and of boxes at one place only the best stands, so a mixture
    of two things is one of them.
    """

    kind = "owlv2"
    threshold = 0.1
    """Where ``transformers`` lets a box stand."""

    def __init__(self, source: str, options: Options) -> None:
        self.source, self.options = source, options
        self.name = f"{self.kind}:{source}"
        self.model = load(source, options, self.kind, "Owlv2ForObjectDetection")
        self.processor = load_processor(source, self.kind)

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """All entities of an image are looked for at once."""
        return [self._judged(item, boxes) for item, boxes in zip(items, self.boxes(items))]

    def boxes(self, items: Sequence[Item]) -> list[list[Thing]]:
        """For each image its things, best first, those below the threshold too."""
        found: list[list[Thing]] = [[] for _ in items]
        for count in sorted({len(item.entities) for item in items} - {0}):
            places = [place for place, item in enumerate(items) if len(item.entities) == count]
            rows = by_shape([self._asked(items[place]) for place in places], self.options, self._run)
            for place, row in zip(places, rows):
                found[place] = _things(items[place].entities, row)
        return found

    def _asked(self, item: Item) -> dict[str, Any]:
        texts = [QUERY.format(with_article(entity)) for entity in item.entities]
        asked = self.processor(text=[texts], images=item.image.convert("RGB"), truncation=True, return_tensors="pt")
        return {name: asked[name] for name in ("input_ids", "attention_mask", "pixel_values")}

    def _run(self, asked: dict[str, Any]) -> Any:
        import torch

        output = self.model(**asked)
        return torch.cat([output.logits.float(), output.pred_boxes.float()], -1)

    def _judged(self, item: Item, things: list[Thing]) -> dict[str, float]:
        if not item.entities:
            return {}
        best = {entity: 0.0 for entity in item.entities}
        for entity, score, _ in things:
            best[entity] = max(best[entity], score)
        counts = Counter(entity for entity, score, _ in things if score >= self.threshold)
        right = sum(counts[entity] == described(entity).number for entity in item.entities)
        return {"": right / len(item.entities), **best}


def _things(entities: tuple[str, ...], row: Any) -> list[Thing]:
    """Boxes ``[boxes, entities + 4]`` (logits, then centre and size) less those that show what a better one shows."""
    logits, own = row[:, : len(entities)].max(1)
    scores = logits.sigmoid()
    middle, size = row[:, -4:-2], row[:, -2:]
    corners = [(*low, *high) for low, high in zip((middle - size / 2).tolist(), (middle + size / 2).tolist())]
    kept: list[Thing] = []
    ranked = logits.argsort(descending=True, stable=True)
    candidates = [place for which in range(len(entities)) for place in ranked[own[ranked] == which][:MOST].tolist()]
    for place in sorted(candidates, key=lambda each: -float(logits[each])):
        if all(overlap(corners[place], box) < SAME for _, _, box in kept):
            kept.append((entities[int(own[place])], float(scores[place]), corners[place]))
    return kept


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes ``x0, y0, x1, y1``."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (sum(areas) - both)
