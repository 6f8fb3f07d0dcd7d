"""The embedded model's own prompts and seeds: half to tune on, half to report on, and pairs that it never saw."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ...model.scenes import COMPANY
from ...model.sprites import THINGS

STEPS, CFG = 20, 4.0
"""The embedded model's own number of steps and guidance scale."""

SPLITS = ("tune", "report", "unseen")
"""``tune``: every other set of entities, where defaults are looked for; ``report``: the other half, with
other seeds; ``unseen``: sets with a pair that training never drew together, never tuned on (most of all sets)."""


@dataclass(frozen=True)
class Case:
    """One picture to draw: the named entities, in the caption's order, and the seed of its noise."""

    entities: tuple[str, ...]
    seed: int


def sets_of(split: str, count: int) -> list[frozenset[str]]:
    """The sets of ``count`` entities that a split draws from. Raises ValueError for an unknown split or count.

    Training drew only one set of four, so that "tune" and "report" end at three.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    most = 4 if split == "unseen" else 3
    if not 1 <= count <= most:
        raise ValueError(f"count: {count} is not allowed; 1 to {most} entities")
    sets = [frozenset(group) for group in itertools.combinations(THINGS, count)]
    if count == 1:
        return sets
    seen = [s for s in sets if all(frozenset(pair) in COMPANY for pair in itertools.combinations(s, 2))]
    if split == "unseen":
        return sorted(set(sets) - set(seen), key=sorted)
    return seen[0::2] if split == "tune" else seen[1::2]


def cases(split: str, count: int, size: int, first_seed: int | None = None) -> list[Case]:
    """``size`` cases of ``count`` entities, always the same ones; their seeds from ``first_seed`` on, or the split's.

    Raises ValueError for an unknown split or count, and for seeds that a host could not take.
    """
    chosen = sets_of(split, count)
    rng = np.random.default_rng([count, SPLITS.index(split)])
    first = 100_000 * (SPLITS.index(split) + 1) + 10_000 * count if first_seed is None else first_seed
    if not 0 <= first <= 2**32 - size:
        raise ValueError(f"first-seed: {first} is not allowed; 0 to {2**32 - size} for {size} images")
    found = []
    for i in range(size):
        names = sorted(chosen[rng.integers(len(chosen))])
        rng.shuffle(names)
        found.append(Case(tuple(names), first + i))
    return found
