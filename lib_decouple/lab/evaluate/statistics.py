"""Intervals and tests of paired runs, by scipy, statsmodels and krippendorff.

Images of one prompt are alike, so what is resampled or flipped is the prompt, never the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats
from scipy.stats import binomtest

RESAMPLES = 4000
"""Of a bootstrap."""
FLIPS = 20_000
"""Of a permutation test: exact up to 14 prompts."""


@dataclass(frozen=True)
class Share:
    """``count`` of ``total`` with its 95 % Wilson interval."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end, in [0, 1]."""
        found = binomtest(self.count, self.total).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def share(flags: Sequence[bool]) -> Share:
    """How many of ``flags`` are true. Raises ValueError for none."""
    if not flags:
        raise ValueError("flags: empty, so there is no share to give")
    return Share(sum(map(bool, flags)), len(flags))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar p of two paired yes/no results. Raises ValueError for unequal lengths."""
    if len(before) != len(after):
        raise ValueError(f"before: {len(before)} results, but after: {len(after)}; they must be pairs")
    gained = sum(b and not a for b, a in zip(before, after))
    lost = sum(a and not b for b, a in zip(before, after))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def area(flags: np.ndarray, values: np.ndarray) -> float:
    """Chance that a whole image has a lower value than one with a missing entity: the area under the ROC curve."""
    hit, rest = values[flags.astype(bool)], values[~flags.astype(bool)]
    if not len(hit) or not len(rest):
        return float("nan")
    return float(stats.mannwhitneyu(hit, rest).statistic / (len(hit) * len(rest)))


def area_interval(flags: np.ndarray, values: np.ndarray, groups: np.ndarray, rounds: int = 1000) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of :func:`area`, whole ``groups`` (an image's entities) resampled; NaN where
    there is none. The same data give the same interval."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(rounds):
        taken = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        found.append(area(flags[taken], values[taken]))
    known = [value for value in found if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def area_within(flags: np.ndarray, values: np.ndarray, groups: np.ndarray, rounds: int = 1000) -> list[float]:
    """The :func:`area` among pairs of the same group (a prompt's pictures), and its 95 % interval, groups resampled.

    It tells whether the value sorts one prompt's pictures; the area over all pictures counts, too, that it tells hard
    prompts from easy ones. NaN where no group has both kinds.
    """
    counted = []
    for group in np.unique(groups):
        own, there = values[groups == group], flags[groups == group].astype(bool)
        pairs = int(there.sum() * (~there).sum())
        if pairs:
            counted.append((area(there, own) * pairs, pairs))
    if not counted:
        return [math.nan] * 3
    right, pairs_each = np.array(counted).T
    taken = np.random.default_rng(0).integers(len(counted), size=(rounds, len(counted)))
    low, high = np.percentile(right[taken].sum(1) / pairs_each[taken].sum(1), [2.5, 97.5])
    return [float(right.sum() / pairs_each.sum()), float(low), float(high)]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; the ends are NaN where there is one prompt only, or all prompts are alike."""

    value: float
    low: float
    high: float
    images: int
    prompts: int

    def percent(self) -> str:
        """``12.5 [10.1, 15.0]``."""
        return self.format(100, 1)

    def format(self, scale: float = 1.0, digits: int = 3) -> str:
        """Value and ends, times ``scale``."""
        ends = f"{self.low * scale:.{digits}f}, {self.high * scale:.{digits}f}"
        if math.isnan(self.low):
            ends = "one prompt" if self.prompts == 1 else "no spread"
        return f"{self.value * scale:.{digits}f} [{ends}]"


def _by_prompt(values: Sequence[float], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each prompt."""
    if len(values) != len(prompts):
        raise ValueError(f"values: {len(values)}, but {len(prompts)} prompts; one prompt for each value")
    if not len(values):
        raise ValueError("values: empty, so there is nothing to estimate")
    _, place = np.unique(np.asarray(prompts), return_inverse=True)
    return np.bincount(place, np.asarray(values, float)), np.bincount(place).astype(float)


def mean(values: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Mean over images, with the percentile bootstrap over prompts.

    Where every image is alike a bootstrap sees no spread; for shares (all 0 or all 1) the Wilson interval
    over the number of prompts stands in. Raises ValueError for none, or unequal lengths.
    """
    sums, sizes = _by_prompt(values, prompts)
    value, n = float(sums.sum() / sizes.sum()), len(sums)
    if n == 1:
        low = high = math.nan
    elif np.ptp(values) == 0 and value in (0.0, 1.0):
        low, high = Share(round(value * n), n).interval
    else:
        low, high = _bootstrap(sums, sizes)
    return Estimate(value, low, high, len(values), n)


def _bootstrap(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """NaN where all prompts are alike: resampling them sees no spread, which is no certainty."""
    if np.ptp(sums / sizes) == 0:
        return math.nan, math.nan

    def ratio(s: np.ndarray, k: np.ndarray, axis: int) -> Any:
        return s.sum(axis=axis) / k.sum(axis=axis)

    found = stats.bootstrap(
        (sums, sizes), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=0, batch=500
    ).confidence_interval
    return float(found.low), float(found.high)


def brought_back(before: Sequence[float], after: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Share of what is missing ``before`` that is not ``after``, ``1 - sum(after) / sum(before)`` of the numbers that
    each image lacks, with the percentile bootstrap over prompts. Below 0 where more is missing. No interval where
    resamples are all alike, as when all is brought back: that few prompts show no spread is no certainty.

    Raises ValueError for unequal lengths, and where nothing is missing before.
    """
    lacking, sizes = _by_prompt(before, prompts)
    left, _ = _by_prompt(after, prompts)
    if not lacking.sum():
        raise ValueError("before: nothing is missing, so nothing can be brought back")
    low = high = math.nan
    if len(sizes) > 1:
        taken = np.random.default_rng(0).integers(len(sizes), size=(RESAMPLES, len(sizes)))
        there = lacking[taken].sum(1) > 0
        shares = 1 - left[taken].sum(1)[there] / lacking[taken].sum(1)[there]
        if np.ptp(shares) > 0:
            low, high = map(float, np.percentile(shares, [2.5, 97.5]))
    return Estimate(1 - float(left.sum() / lacking.sum()), low, high, len(before), len(sizes))


@dataclass(frozen=True)
class Change:
    """What an arm changes, pair by pair: ``after - before``."""

    difference: Estimate
    p: float
    """Two-sided: flips of the sign of whole prompts; exact where there are few."""
    p_images: float | None
    """Exact McNemar, image by image, for yes/no values; takes the images as independent."""


def change(before: Sequence[float], after: Sequence[float], prompts: Sequence[str]) -> Change:
    """Paired comparison. Raises ValueError for unequal lengths."""
    if len(before) != len(after):
        raise ValueError(f"before: {len(before)} results, but after: {len(after)}; they must be pairs")
    differences = np.asarray(after, float) - np.asarray(before, float)
    sums, sizes = _by_prompt(differences, prompts)
    binary = set(np.unique([*before, *after])) <= {0.0, 1.0}
    exact = mcnemar([bool(b) for b in before], [bool(a) for a in after]) if binary else None
    low, high = _bootstrap(sums, sizes) if len(sums) > 1 else (math.nan, math.nan)
    return Change(Estimate(float(differences.mean()), low, high, len(differences), len(sums)), _flip(sums), exact)


def _flip(sums: np.ndarray) -> float:
    """Two-sided p of sums by prompt against the same with signs flipped; 1 for a single prompt."""
    if not np.any(sums) or len(sums) < 2:
        return 1.0
    found = stats.permutation_test(
        (sums,), lambda s, axis: s.sum(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=FLIPS, rng=0, batch=500,
    )  # fmt: skip
    return min(1.0, float(found.pvalue))


def holm(p: Mapping[Any, float]) -> dict[Any, float]:
    """p of many arms -> p corrected for their number (Holm)."""
    if not p:
        return {}
    from statsmodels.stats.multitest import multipletests

    return dict(zip(p, multipletests(list(p.values()), method="holm")[1].tolist()))


@dataclass(frozen=True)
class Preference:
    """Blind pairwise choices between an arm and a rival."""

    wins: int
    losses: int
    both: int
    neither: int
    share: Estimate
    """Wins with every tie as half a win, over prompts."""
    p: float
    """Two-sided: flips of the winner of whole prompts; exact where there are few."""
    p_choices: float
    """Exact sign test of wins against losses, ties left out; takes the choices as independent."""


def preference(choices: Sequence[str], prompts: Sequence[str]) -> Preference:
    """``choices`` are "win", "loss", "both" or "neither". Raises ValueError for another word."""
    points = {"win": 1.0, "loss": 0.0, "both": 0.5, "neither": 0.5}
    if wrong := set(choices) - set(points):
        raise ValueError(f"choices: {min(wrong)!r} is not one of {', '.join(points)}")
    count = {name: list(choices).count(name) for name in points}
    decided = count["win"] + count["loss"]
    sign = float(stats.binomtest(count["win"], decided).pvalue) if decided else 1.0
    values = [points[c] for c in choices]
    flipped = _flip(_by_prompt([value - 0.5 for value in values], prompts)[0])
    found = mean(values, prompts)
    return Preference(count["win"], count["loss"], count["both"], count["neither"], found, flipped, sign)


def agreement(ratings: Sequence[tuple[str, str, str]]) -> float:
    """Krippendorff's nominal alpha of (rater, pair, choice); NaN where no pair has two raters or all chose alike."""
    raters, pairs = sorted({r for r, _, _ in ratings}), sorted({p for _, p, _ in ratings})
    choices = sorted({c for _, _, c in ratings})
    table = np.full((len(raters), len(pairs)), np.nan)
    for rater, pair, choice in ratings:
        table[raters.index(rater), pairs.index(pair)] = choices.index(choice)
    if len(choices) < 2 or not ((~np.isnan(table)).sum(0) > 1).any():
        return math.nan
    import krippendorff

    try:
        return float(krippendorff.alpha(reliability_data=table, level_of_measurement="nominal"))
    except ValueError:  # the pairs that two raters share have one choice only
        return math.nan


def power(n: int, before: float, after: float, alpha: float = 0.05) -> float:
    """Chance that the exact two-sided McNemar test finds the change of a rate in ``n`` pairs below ``alpha``.

    Exact too, summed over how many pairs differ [F: Duffy 1984]. The two results of a pair are taken as independent,
    which seeds in common can only better.
    """
    lost, gained = before * (1 - after), after * (1 - before)
    changed = lost + gained
    if changed == 0:
        return 0.0
    differing = np.arange(n + 1)
    most = stats.binom.ppf(alpha / 2, differing, 0.5)
    most -= stats.binom.cdf(most, differing, 0.5) > alpha / 2  # at most so many on the rarer side, to reject
    share = lost / changed
    rejected = stats.binom.cdf(most, differing, share) + stats.binom.sf(differing - most - 1, differing, share)
    return float(stats.binom.pmf(differing, n, changed) @ rejected)


def smallest_effect(
    n: int, before: float = 0.3, arms: int = 1, wanted: float = 0.8, per_prompt: float = 1, likeness: float = 0.0
) -> float | None:
    """The smallest fall of a missing rate of ``before`` that ``n`` pairs can show with power ``wanted``.

    ``arms`` is how many are compared with plain (the strictest threshold of Holm's rule holds). ``per_prompt``
    images of one prompt that are alike to ``likeness`` (intraclass correlation, 0..1) count for fewer.
    None where even a fall to zero would not show. Raises ValueError by name.
    """
    for name, value, low in (("n", n, 2), ("arms", arms, 1), ("per_prompt", per_prompt, 1)):
        if value < low:
            raise ValueError(f"{name}: {value} is not allowed; at least {low}")
    for name, share, top in (("before", before, 1.0), ("wanted", wanted, 1.0), ("likeness", likeness, 1.0 + 1e-9)):
        if not 0 <= share < top or (name != "likeness" and share == 0):
            raise ValueError(f"{name}: {share} is not allowed; above 0 and below 1")
    own = max(2, int(n / (1 + (per_prompt - 1) * likeness)))

    def lacking(effect: float) -> float:
        return power(own, before, before - effect, 0.05 / arms) - wanted

    if lacking(before) < 0:
        return None
    return float(optimize.brentq(lacking, 1e-9, before))


def detectable(prompts: int, per_prompt: float, arms: int, before: float = 0.3, wanted: float = 0.8) -> str:
    """What a plan can show, in words, before anything is drawn: ``arms`` (other than plain) on ``prompts`` x seeds.

    ``per_prompt``: their mean, where they differ.
    Image by image only: what p over prompts takes depends on how unlike the prompts are, which nobody knows before.
    Raises ValueError by name.
    """

    def told(effect: float | None) -> str:
        return "not even a fall to none" if effect is None else f"a fall of {100 * effect:.1f} points or more"

    n = round(prompts * per_prompt)
    apart = smallest_effect(n, before, arms, wanted, per_prompt)
    alike = smallest_effect(n, before, arms, wanted, per_prompt, likeness=1.0)
    text = (
        f"{n} pairs for each of {arms} arm{'s' if arms > 1 else ''} ({prompts} prompts, {per_prompt:.3g} seeds each): "
        f"where plain misses something in {100 * before:.0f} % of the images, {told(apart)} shows with a chance of "
        f"{100 * wanted:.0f} % image by image (exact McNemar, p below 0.05 by Holm's strictest step"
    )
    text += f"; if a prompt's seeds all fared alike, {told(alike)})" if per_prompt > 1 else ")"
    text += (
        "; p over prompts, by which the report says what holds, needs more, the more the fewer and the more unlike "
        "they are"
    )
    # Flips of whole prompts give no p below 2 / 2^prompts.
    least = 2.0 ** (1 - prompts)
    if least > 0.05 / arms:
        text += f". Too few prompts: p over prompts cannot fall below {least:.2g}, and {0.05 / arms:.2g} is asked for"
    return text + "."
