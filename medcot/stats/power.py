"""Computes statistical power: the smallest detectable difference, and the rows needed for one.

Both use the verdict's own rule at a power of 80 %. The spread, or the share of answers that change,
is itself estimated from the run's rows, so its upper confidence bound (80 %) is used: the plain
estimate would promise too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from medcot.stats.libraries import binomial, chi_squared, noncentral_t, normal, student_t
from medcot.stats.paired import (
    LEVEL,
    ChangeShape,
    count_changes,
    describe_changes,
    rate_interval,
)

POWER = 0.80
"""Power at which a difference counts as detectable."""

PLANNED = 0.90
"""Power asked of the t-test for means: interval and test must agree, and both are a little less
powerful than t."""

SKEW_FACTOR = 2.0
"""Factor of the skewness's effect on the studentised mean: samples show less skew than there is.
Chosen by simulation (``docs/experiments.md``, Statistics)."""

ENOUGH_ROWS = 50
"""Rows from which the detectable size holds for skewed changes, too; below, less power does."""

FEWEST, MOST_ROWS = 8, 1_000_000
"""Fewest rows with any power for means, and the most that are searched."""


def detectable_rate(
    before: Sequence[bool], after: Sequence[bool], level: float = LEVEL
) -> float | None:
    """Return the smallest detectable change of a rate; None if these rows can show none."""
    n = len(before)
    if not n:
        return None
    return smallest(lambda size: rate_power(n, _churn(before, after), size, level), 1.0, POWER)


def rows_for_rate(
    before: Sequence[bool], after: Sequence[bool], level: float = LEVEL
) -> int | None:
    """Return the rows that would show the change seen; None without one, or beyond a million."""
    gained, lost = count_changes(before, after)
    if gained == lost:
        return None
    n, size = len(before), abs(gained - lost) / len(before)
    churn = (gained + lost) / n
    return _fewest(lambda rows: rate_power(rows, churn, size, level), n, POWER)


def rows_to_find(
    before: Sequence[bool], after: Sequence[bool], difference: float, level: float = LEVEL
) -> int | None:
    """Return the rows that would show ``difference``; None without rows or beyond a million.

    Answers are assumed to change as often as in these rows, at the upper confidence bound.
    """
    if not before:
        return None
    churn = _churn(before, after)
    return _fewest(lambda rows: rate_power(rows, churn, difference, level), 1, POWER)


def detectable_mean(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float] | None = None,
    level: float = LEVEL,
) -> float | None:
    """Return the smallest detectable change of a mean; None if these rows can show none."""
    n = len(before)
    return detectable_from_shape(n, describe_changes(before, after, weights), level)


def detectable_from_shape(n: int, shape: ChangeShape, level: float = LEVEL) -> float | None:
    """Return the smallest detectable change of a mean of ``n`` rows whose changes have a shape."""
    if not shape.deviation > 0:
        return None
    shift = _skew_shift(n, shape, level)
    # The effect beyond the shift depends on the number of rows alone.
    found = _detectable_effect(n, level)
    return None if found is None else (found + shift) * shape.deviation * _assurance(n, shape)


@cache
def _detectable_effect(n: int, level: float) -> float | None:
    """Return the smallest detectable mean in deviations."""
    return smallest(lambda size: mean_power(n, size, level), 100.0, PLANNED)


def rows_for_mean(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float] | None = None,
    level: float = LEVEL,
) -> int | None:
    """Return the rows that would show the change seen; None without one, or beyond a million."""
    shape = describe_changes(before, after, weights)
    total = sum(weights) if weights is not None else len(before)
    size = abs(sum(after) - sum(before)) / total if total else 0.0
    if not shape.deviation > 0 or not size:
        return None
    effect = size / shape.deviation
    return _fewest(
        lambda rows: mean_power(rows, effect - _skew_shift(rows, shape, level), level),
        len(before),
        PLANNED,
    )


def rate_power(n: int, churn: float, difference: float, level: float = LEVEL) -> float:
    """Return the power of the exact McNemar test for a true ``difference`` in ``n`` pairs.

    ``churn`` is the share of rows whose grade changes, in either direction; at least
    ``difference``. The sum over the number of changed rows is exact.
    """
    churn = min(1.0, max(churn, difference))
    if churn <= 0:
        return 0.0
    mean, width = n * churn, 8 * math.sqrt(n * churn) + 8
    counts = np.arange(max(0, int(mean - width)), min(n, int(mean + width)) + 1)
    tail = (1 - level) / 2
    binom = binomial()
    most_lost = binom.ppf(tail, counts, 0.5)  # the first count whose lower tail reaches ``tail``
    most_lost -= binom.cdf(most_lost, counts, 0.5) > tail
    found = binom.sf(counts - most_lost - 1, counts, (1 + difference / churn) / 2)
    return float((binom.pmf(counts, n, churn) * found).sum())


def mean_power(n: int, effect: float, level: float = LEVEL) -> float:
    """Return the power of a paired test of ``n`` rows for a mean of ``effect`` deviations.

    It is 0 below ``FEWEST`` rows: the permutation test then has so few permutations that it depends
    on the sign of every row.
    """
    if n < FEWEST:
        return 0.0
    tail = (1 - level) / 2
    return float(noncentral_t().sf(student_t().isf(tail, n - 1), n - 1, effect * math.sqrt(n)))


def _churn(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Return the upper confidence bound of the share of answers that change."""
    bounds = rate_interval(sum(count_changes(before, after)), len(before), 2 * POWER - 1)
    return bounds[1] if bounds else 1.0


def _skew_shift(n: int, shape: ChangeShape, level: float) -> float:
    """Return by how many deviations skewed changes need to be larger, in the worse direction.

    The quantile z of a studentised mean moves by skewness (2 z² + 1) / (6 root n) standard errors
    (Hall 1992, "The Bootstrap and Edgeworth Expansion", section 2.6).
    """
    z = float(normal().isf((1 - level) / 2))
    return SKEW_FACTOR * abs(shape.skewness) * (2 * z * z + 1) / (6 * n)


def _assurance(n: int, shape: ChangeShape) -> float:
    """Return how much larger a deviation may be than its estimate from ``n`` rows (chi-squared).

    Outliers make the estimate less sure: its degrees of freedom shrink with the excess kurtosis
    (Box 1953, "Non-normality and tests on variances").
    """
    freedom = (n - 1) / (1 + max(0.0, shape.excess) / 2)
    return math.sqrt(freedom / float(chi_squared().ppf(1 - POWER, freedom)))


def smallest(power: Callable[[float], float], highest: float, enough: float) -> float | None:
    """Return the smallest difference whose power is ``enough``; None if none up to ``highest``."""
    if not power(highest) >= enough:
        return None
    low, high = 0.0, highest
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= enough else (middle, high)
    return high


def _fewest(power: Callable[[int], float], more_than: int, enough: float) -> int | None:
    """Return the number of rows, to half a percent, whose power is ``enough``."""
    low, high = more_than, more_than + 1
    while power(high) < enough:
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= enough else (middle, high)
    return high
