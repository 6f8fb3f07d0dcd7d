"""How surely is an entity in the picture that is being drawn? Read off the cross-attention maps.

From the middle noise levels on, an entity that will be in the picture has a place where its map is higher than all
others'; one that goes missing has none: another holds every place that it attends to. The score is by how much it leads
there. Others were tried, at every noise level, on two models whose entities go missing for different reasons (``study
presence``): this one tells best or as well as the best on both, and nothing tells at the highest noise. A score ranks;
it is a probability only where a :class:`Curve` was learned for the very model.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, TypeVar

import torch
from einops import rearrange, reduce
from torch import Tensor

from . import losses

Scores = TypeVar("Scores", float, Tensor)

SURE = 0.9
"""The chance from which on a draft needs no better one. Another draft costs little, and with "rather there than not" as
the border the embedded model's accepted drafts of two entities still lost one in 14 %, with this in 7 % [I]."""


SCORE = "lead"
"""Name of what :func:`presence` gives, kept beside what is learned of it."""


def leads(maps: Tensor) -> Tensor:
    """``max_p (A_i(p) − max_{j≠i} A_j(p))``; of one entity alone its peak ``max_p A_i(p)`` [I].

    Maps ``[batch, entities, h, w]`` of attention probabilities -> ``[batch, entities]`` in [-1, 1], differentiable.
    """
    if maps.shape[1] < 2:
        return losses.intensity(maps, "max")
    flat = rearrange(maps.float(), "b e h w -> b e (h w)")
    first, second = flat.topk(2, dim=1).values.split(1, dim=1)
    others = torch.where(flat == first, second, first)
    return reduce(flat - others, "b e p -> b e", "max")


def presence(maps: Tensor) -> Tensor:
    """The score: :func:`leads`, at least 0. ``[batch, entities]`` in [0, 1]."""
    return leads(maps).clamp(min=0)


def colliding(maps: Tensor) -> tuple[int, int] | None:
    """The pair of entities whose normalised maps ``[entities, h, w]`` overlap most (IoU); None for fewer than two."""
    count = len(maps)
    if count < 2:
        return None
    i, j = torch.triu_indices(count, count, offset=1)
    most = int(losses.pair_iou(maps[None], "union")[0].argmax())
    return int(i[most]), int(j[most])


def lowest(scores: Iterable[float]) -> float:
    """Of scores or chances in [0, 1], the lowest; below all others where one is no number, or there is none."""
    known = list(scores)
    return -1.0 if any(map(math.isnan, known)) else min(known, default=-1.0)


WEAKEST = "attention weakest for"
"""Begins what is told of a model of which no curve was learned."""


@dataclass(frozen=True)
class Presence:
    """What the maps of one image tell at one noise level, and of each of its entities."""

    sigma: float
    scores: dict[str, float]
    """Entity -> its :func:`presence`, in [0, 1]."""
    chances: dict[str, float] | None = None
    """Entity -> the probability that it is in the picture; None where no curve was learned for the model, or says
    nothing at this noise level."""
    colliding: tuple[str, str] | None = None
    """The pair whose maps overlap most."""

    @property
    def weakest(self) -> str:
        """The entity of the lowest score, or of one that is no number."""
        return min(self.scores, key=lambda name: (not math.isnan(self.scores[name]), self.scores[name]))

    def words(self) -> str:
        """``cat ✓, dog perhaps missing``; where no curve was learned, ``attention weakest for dog``, which tells
        nothing of the picture, and of one entity alone nothing."""
        if self.chances is None:
            told = f"{WEAKEST} {self.weakest}" if len(self.scores) > 1 else ""
        else:
            told = ", ".join(
                f"{name} ✓" if own >= 0.5 else f"{name} perhaps missing" for name, own in self.chances.items()
            )
        pair = " and ".join(self.colliding) if self.colliding and len(self.scores) > 2 else ""
        closest = f"{'' if told.startswith(WEAKEST) else 'attention '}closest for {pair}" if pair else ""
        return "; ".join(filter(None, (told, closest)))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        pair = None if self.colliding is None else list(self.colliding)
        own = {"sigma": self.sigma, "scores": self.scores, "chances": self.chances, "weakest": self.weakest}
        return {**own, "closest": pair, "words": self.words()}


@torch.no_grad()
def read(names: Sequence[str], maps: Tensor, sigma: float, curve: Curve | None = None) -> Presence:
    """What the raw maps ``[entities, h, w]`` tell, read at noise level ``sigma``.

    Of one entity alone no chance is told: its score is no lead, of which the curve was learned. Nor of more than the
    curve was learned of: the more there are, the less any leads. Nor where one is a thing that it was not learned of.
    """
    pair = colliding(maps)
    scores = dict(zip(names, presence(maps[None])[0].tolist()))
    chances: dict[str, float] | None = None
    if curve is not None and 1 < len(scores) <= curve.most and all(map(curve.was_learned_of, names)):
        found = {name: curve.probability(score, sigma) for name, score in scores.items()}
        chances = {name: own for name, own in found.items() if own is not None} or None
    return Presence(sigma, scores, chances, None if pair is None else (names[pair[0]], names[pair[1]]))


@dataclass(frozen=True)
class Level:
    """At one noise level: ``P(present) = 1 / (1 + exp(−slope (score − middle)))``."""

    sigma: float
    middle: float
    slope: float


@dataclass(frozen=True)
class Curve:
    """What a score means for one model, learned from pictures whose truth is known.

    ``levels`` fall in sigma. Raises ValueError for none, or for levels that do not fall.
    """

    levels: tuple[Level, ...]
    draft: Level | None = None
    """Of a draft's scores, whose coarse steps make lower or higher maps than a run's; None where nobody learned it."""
    most: int = 3
    """How many entities a picture had, at most, of which it was learned."""
    things: tuple[str, ...] = ()
    """The things that its pictures named, where the model knows no others; () where it knows any number."""

    def __post_init__(self) -> None:
        sigmas = [level.sigma for level in self.levels]
        if not sigmas or sigmas != sorted(set(sigmas), reverse=True) or sigmas[-1] <= 0:
            raise ValueError(f"levels: the noise levels {sigmas} must be one or more above 0, and fall")

    def was_learned_of(self, entity: str) -> bool:
        """Whether an entity, by the last word of its name, is one of its things: "red cat", "cats" and "cat@2" are."""
        word = (entity.partition("@")[0].lower().split() or [""])[-1]
        forms = {word, word.removesuffix("s"), word.removesuffix("es")}
        return not self.things or not forms.isdisjoint(self.things)

    def probability(self, score: float, sigma: float) -> float | None:
        """That the entity is in the picture, between the levels by the logarithm of ``sigma``.

        None above the highest level, where the maps say nothing; below the lowest that level's holds.
        """
        odds = self.odds(score, sigma)
        return None if odds is None else 1 / (1 + math.exp(-odds))

    def odds(self, score: Scores, sigma: float) -> Scores | None:
        """The logarithm of the odds of :meth:`probability`, of a number or of a tensor of them."""
        if not sigma <= self.levels[0].sigma:
            return None
        rising = [-level.sigma for level in self.levels]
        after = bisect_right(rising, -sigma)
        first, second = self.levels[max(after - 1, 0)], self.levels[min(after, len(self.levels) - 1)]
        along = 0.0
        if first.sigma != second.sigma:
            along = math.log(first.sigma / sigma) / math.log(first.sigma / second.sigma)
        odds = [(score - level.middle) * level.slope for level in (first, second)]
        return odds[0] * (1 - along) + odds[1] * along

    def accepts(self, scores: Iterable[float], sigma: float) -> bool:
        """Of a draft that was read at noise level ``sigma``: is every entity's chance to be there at least
        :data:`SURE`? Never where that was not learned of drafts that are read there."""
        own = self.draft
        if own is None or not math.isclose(own.sigma, sigma, rel_tol=0.05):
            return False
        return all((score - own.middle) * own.slope >= math.log(SURE / (1 - SURE)) for score in scores)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        levels = [list(astuple(level)) for level in self.levels]
        made: dict[str, Any] = {"score": SCORE, "entities": self.most, "levels": levels}
        made |= {"things": list(self.things)} if self.things else {}
        return made if self.draft is None else {**made, "draft": list(astuple(self.draft))}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Curve:
        """What :meth:`as_dict` gave. Raises ValueError for anything else, such as what was learned of another score."""
        if (score := data.get("score", "peak")) != SCORE:
            raise ValueError(f"score: it was learned of {score!r}, and {SCORE!r} is read now; calibrate it again")
        levels: Sequence[Any] = data.get("levels", ())
        draft, most, things = data.get("draft"), data.get("entities", cls.most), data.get("things", [])
        if type(most) is not int or most < 2:
            raise ValueError(f"entities: {most!r} is not allowed; it must be a whole number of 2 or more")
        if not isinstance(things, list) or not all(isinstance(thing, str) for thing in things):
            raise ValueError(f"things: {things!r} is not allowed; it must be a list of words")
        try:
            found = tuple(Level(*map(float, level)) for level in levels)
            return cls(found, None if draft is None else Level(*map(float, draft)), most, tuple(things))
        except TypeError:
            raise ValueError(f"levels: {levels!r}, {draft!r} must be lists of sigma, middle and slope") from None


@dataclass
class Helping:
    """Which entities still need help, by what was learned of the model: those that are rather missing than there [I].

    An image whose entities are all there at a look is left alone from then on; where some are there, the others alone
    are moved. Above the curve's highest noise level nothing is known, and every entity is moved.

    Or, ``weighed``, none is left alone: an update is as long as the weakest entity is likely to be missing, and each
    entity pulls by its own chance to be.
    """

    curve: Curve
    whole: set[int] = field(default_factory=set)
    """Images of the batch that are left alone."""
    weighed: bool = False

    def _missing(self, maps: Tensor, sigma: float) -> Tensor | None:
        """Of maps ``[entities, h, w]`` each entity's chance to be missing, ``[entities]``; None where nothing is
        known."""
        odds = self.curve.odds(presence(maps.detach()[None])[0], sigma)
        return None if odds is None else torch.sigmoid(-odds)

    def focused(self, maps: Tensor, sigma: float) -> Tensor:
        """Maps ``[entities, h, w]``, those of entities that are there without their gradient or with less of it."""
        chance = self._missing(maps, sigma)
        if chance is None:
            return maps
        share = chance / chance.amax().clamp(min=1e-30) if self.weighed else (chance > 0.5).to(maps.dtype)
        return maps.detach() + share[:, None, None] * (maps - maps.detach())

    def strengths(self, maps: Sequence[Tensor], sigma: float) -> list[float]:
        """What each image's update is multiplied with where it is weighed, in [0, 1]; maps ``[entities, h, w]``."""
        chances = [self._missing(own, sigma) for own in maps]
        return [1.0 if own is None else float(own.amax()) for own in chances]

    def note(self, images: Sequence[int], maps: Sequence[Tensor], sigma: float) -> None:
        """Remember which of ``images`` are whole, by their maps ``[entities, h, w]``."""
        if self.weighed:
            return
        for image, own in zip(images, maps):
            odds = self.curve.odds(presence(own[None])[0], sigma)
            if odds is not None and bool((odds >= 0).all()):
                self.whole.add(image)
