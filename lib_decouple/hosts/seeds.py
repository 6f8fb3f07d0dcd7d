"""Which seeds are drafted for an image, and which of them was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..core.insist import Noises
from ..core.presence import lowest

STRIDE = 1_000_003
"""From one seed that is drafted for an image to its next: more than a job has images, whose own seeds are consecutive,
so that no two images of a job come to the same seed."""
_SEEDS = 2**32
"""How many seeds a WebUI's page draws from; what would lie behind the last begins anew."""


@dataclass
class ExtraPasses:
    """Passes of the denoiser beside the run that is delivered and the guidance of it, over all images of a batch."""

    drafts: int = 0
    given_up: int = 0
    """The host's own, in runs that were begun and broken off or that failed."""
    guided: int = 0
    """Guidance's, in those runs."""


@dataclass(frozen=True)
class BegunRun:
    """A run that was begun from the noise of ``seed``, and what it told midway."""

    seed: int
    chances: dict[str, float]
    """Entity -> the probability that it is in the picture."""

    def missing(self) -> list[str]:
        """Those that are rather missing than there."""
        return [name for name, own in self.chances.items() if not own >= 0.5]


@dataclass(frozen=True)
class SeedChoice:
    """Of one image: the seed that was asked for, that which is drawn, and what their drafts scored."""

    asked: int
    drawn: int | None
    """None where nothing is drawn."""
    scores: dict[int, dict[str, float]]
    """Seed -> entity -> presence, in the order of drafting."""
    variation: bool = False
    """These are variation seeds; the image's seed itself is as asked for."""
    pictures: dict[int, Any] = field(default_factory=dict, repr=False)
    """Seed -> what its draft predicts, as a small picture of Pillow's, where somebody wanted to see it."""

    accepted: bool = False
    """Did its draft need no better one?"""
    runs: tuple[BegunRun, ...] = ()
    """Those that were looked at midway, each from another seed."""
    moves: int = 0
    """How often guidance moved one of its drafts, by a gradient each."""

    def words(self) -> str:
        """What the status line says."""
        kind = "variation seed" if self.variation else "seed"
        if self.drawn is None:
            first = max(self.scores, key=lambda seed: lowest(self.scores[seed].values()))
            return f"{len(self.scores)} {kind}s drafted, {first} is the best by attention; nothing was drawn"
        best = f"best of {len(self.scores)} drafts by attention"
        drafted = "accepted by its draft" if self.accepted else best
        if self.drawn == self.asked:
            told = f"the {kind} asked for, {self.asked}, {drafted}"
        elif self.accepted:
            told = f"{kind} {self.drawn} drawn, accepted by its draft, instead of {self.asked}"
        else:
            told = f"{kind} {self.drawn} drawn, {best}, instead of {self.asked}"
        again = self.begun_again()
        return f"{told}; begun again: {again}" if again else told

    def begun_again(self) -> str:
        """Why other seeds' runs were broken off; "" where none was."""
        others = [run for run in self.runs if run.seed != self.drawn]
        told = [f"with seed {run.seed} {' and '.join(run.missing())} perhaps missing" for run in others]
        return "; ".join(told)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        drafts = [{"seed": seed, "scores": scores} for seed, scores in self.scores.items()]
        runs = [{"seed": run.seed, "chances": run.chances} for run in self.runs]
        own = {"asked": self.asked, "drawn": self.drawn, "variation": self.variation, "drafts": drafts}
        return {**own, "accepted": self.accepted, "runs": runs}


def chosen(
    seeds: Sequence[int], noises: Noises, number: int | None, variation: bool = False,
    pictures: Mapping[int, Any] = MappingProxyType({}),
) -> SeedChoice:  # fmt: skip
    """Of an image whose ``noises`` are those of ``seeds``, that ``number`` is drawn, or with None nothing."""
    scores = {seed: one.scores for seed, one in zip(seeds, noises.drafts)}
    runs = tuple(BegunRun(seeds[k], told) for k, told in noises.runs.items())
    moves = sum(one.moves for one in noises.drafts)
    if number is None:
        return SeedChoice(seeds[0], None, scores, variation, dict(pictures), moves=moves)
    accepted = noises.accepts(noises.drafts[number])
    return SeedChoice(seeds[0], seeds[number], scores, variation, dict(pictures), accepted, runs, moves)


def seeds_to_draft(asked: int, count: int) -> list[int]:
    """``asked`` and the ``count - 1`` others that are drafted for it, whatever else the job draws."""
    found = [asked + k * STRIDE for k in range(count)]
    return [seed % _SEEDS for seed in found] if 0 <= asked < _SEEDS else found
