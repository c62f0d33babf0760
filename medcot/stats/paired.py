"""Computes rates and paired differences with their intervals and tests.

Every comparison pairs the same rows before and after. A change is called only when both its
interval and its test say so (see ``docs/experiments.md``, Statistics).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medcot.stats.libraries import (
    Numbers,
    adjust_holm,
    binomial_p_value,
    exchange_p_value,
    mcnemar_p_value,
    normal,
    wilson_interval,
)

Verdict = Literal["improved", "no evidence", "worse"]

LEVEL = 0.95
RESAMPLES = 9_999
_CELLS = 4_000_000  # numbers in one block of resamples: 32 MB


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A difference, after minus before, over ``n`` pairs.

    ``low`` and ``high`` bound it with confidence ``level``; None where ``n`` gives no interval.
    ``p_value`` is two-sided.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float
    n: int
    level: float = LEVEL

    def verdict(self, better: Literal["lower", "higher"]) -> Verdict:
        """Return the verdict: a direction only if interval and test agree on one."""
        if self.low is None or self.high is None or self.p_value >= 1 - LEVEL:
            return "no evidence"
        if self.low > 0:
            return "improved" if better == "higher" else "worse"
        if self.high < 0:
            return "improved" if better == "lower" else "worse"
        return "no evidence"


def rate_interval(successes: int, n: int, level: float = LEVEL) -> tuple[float, float] | None:
    """Compute Wilson's interval of a rate; None without rows."""
    return wilson_interval(successes, n, level) if n else None


def compare_rates(
    before: Sequence[bool], after: Sequence[bool], level: float = LEVEL
) -> PairedDifference | None:
    """Compare a rate over the same rows: exact McNemar test, Bonett and Price's interval.

    The interval (Wald's on each count of changed rows plus one; Bonett and Price 2012,
    "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data") keeps a width if no row changed, as it must: that none of 24 questions changed does not
    show that none would. None without rows.
    """
    n = _same_length(before, after)
    if not n:
        return None
    gained, lost = count_changes(before, after)
    low, high = _adjusted_wald(gained, lost, n, level)
    p_value = mcnemar_p_value(gained, lost)
    return PairedDifference((gained - lost) / n, low, high, p_value, n, level)


def compare_means(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> PairedDifference | None:
    """Compare ``sum(values) / sum(weights)`` over the same rows.

    With losses summed over each row's tokens, and the tokens as weights, that is the mean loss per
    token. The interval is a studentised bootstrap over rows, not tokens. The p-value is a
    permutation test that exchanges before and after within rows, exact if the rows are few. None
    without rows.
    """
    n = _same_length(before, after)
    if not n:
        return None
    d, w = _differences(before, after, weights)
    low, high = _bootstrap(d, w, level, resamples, seed)
    p_value = exchange_test(d, resamples, seed)
    return PairedDifference(float(d.sum() / w.sum()), low, high, p_value, n, level)


def sign_test(wins: int, losses: int) -> float:
    """Compute the exact two-sided p-value of ``wins`` against ``losses`` under equal chances."""
    return binomial_p_value(wins, wins + losses) if wins + losses else 1.0


def correct_p_values(found: dict[str, PairedDifference]) -> dict[str, PairedDifference]:
    """Adjust the p-values of several comparisons by Holm's method.

    Their intervals must have been computed at :func:`corrected_level`.
    """
    corrected = adjust_holm([one.p_value for one in found.values()])
    return {
        name: replace(one, p_value=p)
        for (name, one), p in zip(found.items(), corrected, strict=True)
    }


def corrected_level(comparisons: int) -> float:
    """Return the confidence level at which several intervals hold together (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, comparisons)


def count_changes(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """Count the rows that became right and those that became wrong."""
    pairs = [(bool(b), bool(a)) for b, a in zip(before, after, strict=True)]
    return pairs.count((False, True)), pairs.count((True, False))


@dataclass(frozen=True, slots=True)
class ChangeShape:
    """How a ratio's change differs from row to row.

    ``deviation`` is the standard error times root n, in the ratio's unit; ``skewness`` is
    adjusted for the number of rows, ``excess`` is the kurtosis less that of a normal distribution.
    """

    deviation: float
    skewness: float = 0.0
    excess: float = 0.0


def describe_changes(
    before: Sequence[float], after: Sequence[float], weights: Sequence[float] | None = None
) -> ChangeShape:
    """Describe the residuals of the ratio estimator (see :func:`_ratio_and_error`)."""
    d, w = _differences(before, after, weights)
    n = len(d)
    if n < 2:
        return ChangeShape(0.0)
    ratio, error = (float(one) for one in _ratio_and_error(d, w))
    residual = d - w * ratio
    variance = float((residual**2).mean())
    if n < 3 or variance <= 0:
        return ChangeShape(error * math.sqrt(n))
    skewness = float((residual**3).mean()) / variance**1.5 * math.sqrt(n * (n - 1)) / (n - 2)
    excess = float((residual**4).mean()) / variance**2 - 3
    return ChangeShape(error * math.sqrt(n), skewness, excess)


def _same_length(before: Sequence[object], after: Sequence[object]) -> int:
    if len(before) != len(after):
        raise ValueError(f"{len(before)} rows before, {len(after)} after: not the same rows")
    return len(before)


def _differences(
    before: Sequence[float], after: Sequence[float], weights: Sequence[float] | None
) -> tuple[Numbers, Numbers]:
    d = np.asarray(after, float) - np.asarray(before, float)
    return d, np.ones(len(d)) if weights is None else np.asarray(weights, float)


def _adjusted_wald(gained: int, lost: int, n: int, level: float) -> tuple[float, float]:
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = float(normal().isf((1 - level) / 2)) * math.sqrt(
        (up + down - (up - down) ** 2) / (n + 2)
    )
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def _bootstrap(
    d: Numbers, w: Numbers, level: float, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Compute the studentised bootstrap interval of sum(d)/sum(w) (Efron and Tibshirani, 12.5).

    Chosen by simulation (``docs/experiments.md``): at 8 to 50 rows the percentile and BCa intervals
    of ``scipy.stats.bootstrap`` are too narrow, most of all for skewed differences. If the rows are
    so few that resamples often have no spread, there is no interval.
    """
    if len(d) < 2:
        return None, None
    ratio, error = (float(one) for one in _ratio_and_error(d, w))
    if error <= 1e-9 * abs(ratio):  # every row says the same: no resample differs
        return ratio, ratio
    rng = np.random.default_rng(seed)
    scores: list[Numbers] = []
    for count in _blocks(resamples, len(d)):
        rows = rng.integers(0, len(d), (count, len(d)))
        ratios, errors = _ratio_and_error(d[rows], w[rows])
        flat = errors <= 1e-9 * error
        with np.errstate(divide="ignore", invalid="ignore"):
            score = (ratios - ratio) / np.where(flat, 0.0, errors)
        scores.append(np.nan_to_num(score, nan=0.0, posinf=np.inf, neginf=-np.inf))
    tail = (1 - level) / 2
    ordered = np.sort(np.concatenate(scores))
    cut = int(tail * len(ordered))
    low, high = ratio - ordered[-1 - cut] * error, ratio - ordered[cut] * error
    return (float(low), float(high)) if math.isfinite(low - high) else (None, None)


def _ratio_and_error(d: Numbers, w: Numbers) -> tuple[Numbers, Numbers]:
    """Compute sum(d)/sum(w) over the last axis and its standard error, by the ratio estimator
    (Cochran 1977, section 6.4)."""
    n = d.shape[-1]
    ratio = d.sum(axis=-1) / w.sum(axis=-1)
    residual = d - w * ratio[..., None]
    variance = (residual**2).sum(axis=-1) / ((n - 1) * n)
    return ratio, np.sqrt(variance) / w.mean(axis=-1)


def _blocks(count: int, width: int) -> Iterator[int]:
    """Split ``count`` rows of ``width`` numbers into blocks of at most ``_CELLS`` numbers."""
    size = max(1, _CELLS // width)
    for start in range(0, count, size):
        yield min(size, count - start)


def exchange_test(d: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Compute the p-value of sum(d) under exchange of before and after within each row.

    ``d`` [rows] are the changes. It is exact if the rows are few, else of ``resamples``. Weights do
    not change under exchange, so they drop out of the statistic.
    """
    if len(d) < 2 or not np.any(d):
        return 1.0
    return exchange_p_value(d, resamples, max(1, _CELLS // len(d)), seed)
