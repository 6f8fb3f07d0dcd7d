"""Shares with intervals and paired tests, by scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


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
