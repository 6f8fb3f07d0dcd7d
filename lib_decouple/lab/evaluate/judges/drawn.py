"""The judge of drawn things: a small net that ships, for the model whose pictures show 24 things in 11 colours."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ....prompt.lexicon import singulars
from ...model.sprites import COLOURS, THINGS
from ..backends.base import HASH_DIGITS, sha256
from .base import COLOUR, EXTRA, Item, Missing, Options
from .words import described


class DrawnJudge:
    """1 for each entity that is there, in whatever colour, 0 for each that is not; the whole: each as often as named,
    in the colour named, and nothing else. A colour is the entity's own or the one before it in the prompt."""

    kind = name = "drawn"
    threshold = 0.5

    def __init__(self, source: str, options: Options) -> None:
        if source:
            raise Missing(f"the judge of drawn things has its own weights and takes no model, but was given {source!r}")
        from ...model.judge import WEIGHTS  # torch, which who only reads a report has no need of

        self.source = f"weights {sha256(WEIGHTS)[:HASH_DIGITS]}"

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """Raises ValueError for things and attributes that it does not know, and for images of another size."""
        from ...model.judge import look, match, verdict

        scores: list[dict[str, float]] = []
        if len({item.image.size for item in items}) > 1:
            return [self.score([item])[0] for item in items]
        for item, found in zip(items, look(np.stack([np.array(item.image.convert("RGB")) for item in items]))):
            asked = [(entity, each) for entity in item.entities for each in _asked(entity, item.prompt)]
            answers, _ = match(found, [each for _, each in asked])
            there = dict.fromkeys(item.entities, 1.0)
            there |= {entity: 0.0 for (entity, _), answer in zip(asked, answers) if answer is None}
            said = verdict(found, [each for _, each in asked])
            whole = {"": float(said.right), EXTRA: float(len(said.extra))}
            for (entity, (_, colour)), answer in zip(asked, answers):
                if colour and answer:
                    key = f"{COLOUR}{entity}"
                    whole[key] = min(whole.get(key, 1.0), float(answer.colour == colour))
            scores.append({**whole, **there})
        return scores


def _asked(entity: str, prompt: str) -> list[tuple[str, str | None]]:
    """``"two red cars"`` -> a red car, twice; ``"car"`` of "a red car and a bow" -> a red car."""
    words = described(entity)
    colours = [word for word in words.attributes if word in COLOURS]
    if other := [word for word in words.attributes if word not in COLOURS]:
        raise ValueError(f"entity: {other[0]!r} in {entity!r} is no colour that is drawn; one of {', '.join(COLOURS)}")
    if len(colours) > 1:
        raise ValueError(f"entity: {entity!r} names {len(colours)} colours; one thing has one here")
    before = re.findall(rf"\b({'|'.join(COLOURS)})\s+{re.escape(entity)}\b", prompt, re.IGNORECASE)
    if not colours and len(before) == 1:
        colours = [before[0].lower()]
    nouns = [noun for noun in (words.noun, *singulars(words.noun)) if noun in THINGS]
    return [((nouns or [words.noun])[0], colours[0] if colours else None)] * words.number
