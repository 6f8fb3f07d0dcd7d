"""Which of several first noises is drawn: by what their drafts tell, and by what a run told that was begun from one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .drafts import Draft, best
from .presence import Curve, lowest

Accepts = Callable[[Draft], bool]
"""Does a draft tell that every entity will be there?"""


def nothing(_: Draft) -> bool:
    """Of a model of which nobody has learned what a draft's scores mean: no draft is accepted, so the best is drawn."""
    return False


def accepting(curve: Curve | None) -> Accepts:
    """Drafts whose every entity is surely there by the ``curve``; none without one, nor of one entity alone, whose
    score is no lead."""
    if curve is None:
        return nothing
    return lambda draft: len(draft.scores) > 1 and curve.accepts(draft.scores.values(), draft.sigma)


@dataclass
class Noises:
    """One image's, numbered as they are drafted; the first is that of the seed asked for.

    The first whose draft is accepted is drawn, else the best. Where its run lacks an entity, the next that was not
    run, and at the end the best of those that were. So none is drawn that scores below the first: where that was run,
    it is among those of which the best is drawn, and where not, its draft was worse than that of each that was.
    """

    count: int
    """How many may be drafted."""
    accepts: Accepts = nothing
    drafts: list[Draft] = field(default_factory=list)
    runs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Number -> entity -> the chance that it is in the picture, as the run from this noise told it midway."""

    @property
    def wants_draft(self) -> bool:
        """Is another draft to be made before one is drawn?"""
        return len(self.drafts) < self.count and not any(self.accepts(self.drafts[k]) for k in self.left)

    @property
    def left(self) -> list[int]:
        """Those that are drafted and were not run."""
        return [k for k in range(len(self.drafts)) if k not in self.runs]

    @property
    def is_spent(self) -> bool:
        """Is there none that was not run, nor one to be drafted?"""
        return not self.left and len(self.drafts) >= self.count

    def next(self) -> int:
        """The one to draw, of those that were not run. Raises ValueError where all were."""
        left = self.left
        accepted = [k for k in left if self.accepts(self.drafts[k])]
        return accepted[0] if accepted else left[best([self.drafts[k] for k in left])]

    def surest(self) -> int:
        """That of the run whose weakest entity is surest, of equals the first. Raises ValueError where none was run."""
        return max(self.runs, key=lambda k: lowest(self.runs[k].values()))

    def lacks(self, number: int) -> bool:
        """Did the run from this noise tell that an entity is rather missing than there?"""
        return number in self.runs and not lowest(self.runs[number].values()) >= 0.5
