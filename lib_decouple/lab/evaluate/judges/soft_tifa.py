"""Soft-TIFA (GenEval 2, Kamath et al., arXiv 2512.16853): one question for each atom of the prompt, the probability
of the expected answer instead of right or wrong, and over a prompt their geometric mean.

Own code from the paper's description. GenEval 2's prompts come with their questions; here an entity's atoms are read
off its words: that it is there, each attribute before its noun, and how many there are where a number is named.
Relations between entities are not asked about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .answers import Writer
from .base import Item, Missing, Options
from .words import NUMBERS, described, is_plural, with_article


@dataclass(frozen=True)
class Atom:
    """One question with its expected answers, any of which counts; ``kind`` is presence, attribute or count."""

    kind: str
    question: str
    answers: tuple[str, ...]


def atoms(entity: str) -> list[Atom]:
    """``"two red cars"`` -> is there any, are they red, how many. The first asks whether it is there."""
    own = described(entity)
    plural = is_plural(own.noun)
    asked = f"Are there any {own.noun}" if plural else f"Is there {with_article(own.noun)}"
    result = [Atom("presence", f"{asked} in the image?", ("yes",))]
    for word in own.attributes:
        result.append(Atom("attribute", f"{'Are' if plural else 'Is'} the {own.noun} {word}?", ("yes",)))
    if own.number > 1:
        answers = (NUMBERS[own.number - 1], str(own.number))
        result.append(Atom("count", f"How many {own.noun} are in the image?", answers))
    return result


class SoftTifa:
    """For each entity P(yes) that it is there, below 0.5 missing; "" is the geometric mean over all atoms, 0 to 1."""

    kind = "soft-tifa"
    threshold = 0.5

    def __init__(self, source: str, options: Options) -> None:
        self.source = source
        self.name = f"{self.kind}:{source}"
        self.writer = Writer(source, options, self.kind)

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """One question an atom."""
        asked = [[(entity, atom) for entity in item.entities for atom in atoms(entity)] for item in items]
        pairs = [(item.image.convert("RGB"), a.question) for item, own in zip(items, asked) for _, a in own]
        if not pairs:
            return [{} for _ in items]
        first = self.writer.first(pairs)
        scores, row = [], 0
        for own in asked:
            chances: dict[str, float] = {}
            logs = []
            for entity, atom in own:
                log = self._log_chance(first[row : row + 1], atom.answers)
                row += 1
                logs.append(log)
                if atom.kind == "presence":
                    chances[entity] = math.exp(log)
            scores.append({"": math.exp(sum(logs) / len(logs)), **chances} if logs else {})
        return scores

    def _log_chance(self, first: Any, answers: tuple[str, ...]) -> float:
        """Log-probability of any of the answers; a vocabulary may lack one of them, such as a digit."""
        found: list[float] = []
        for answer in answers:
            try:
                found.append(float(self.writer.log_probability(first, answer).exp()))
            except Missing:
                if answer == answers[-1] and not found:
                    raise
        return math.log(sum(found)) if sum(found) else -math.inf
