"""What a number of rows can show: the smallest difference, and how many rows a given one takes.

Both are planned for the verdict's own rule at a power of 80 %. What a plan must assume, the spread
or the share of answers that change, is itself estimated from the run's rows; so it is taken at the
upper end of what they allow (80 % confidence). A plan from the plain estimate promises too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from medcot.stats.paired import LEVEL, changes, rate_interval, row_deviation

POWER = 0.80
PLANNED = 0.90  # for means: interval and test must agree, and both are a little blunter than t
FEWEST, MOST_ROWS = 8, 1_000_000


def detectable_rate(
    before: Sequence[bool], after: Sequence[bool], level: float = LEVEL
) -> float | None:
    """The smallest change of a rate that as many rows would show; None where they show none."""
    n = len(before)
    if not n:
        return None
    return _smallest(lambda size: rate_power(n, _churn(before, after), size, level), 1.0, POWER)


def rows_for_rate(
    before: Sequence[bool], after: Sequence[bool], level: float = LEVEL
) -> int | None:
    """The rows that would show the change seen; None where there is none, or beyond a million."""
    gained, lost = changes(before, after)
    if gained == lost:
        return None
    n, size = len(before), abs(gained - lost) / len(before)
    churn = (gained + lost) / n
    return _fewest(lambda rows: rate_power(rows, churn, size, level), n, POWER)


def rows_to_find(
    before: Sequence[bool], after: Sequence[bool], difference: float, level: float = LEVEL
) -> int | None:
    """The rows that would show a change of ``difference``; None without rows or beyond a million.

    Answers are taken to change as often as in these rows, at the upper end of what they allow.
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
    """The smallest change of a mean that as many rows would show; None where they show none."""
    n = len(before)
    spread = row_deviation(before, after, weights)
    if not spread > 0:
        return None
    spread *= _assurance(n)
    found = _smallest(lambda size: mean_power(n, size, level), 100.0, PLANNED)
    return None if found is None else found * spread


def rows_for_mean(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float] | None = None,
    level: float = LEVEL,
) -> int | None:
    """The rows that would show the change seen; None where there is none, or beyond a million."""
    spread = row_deviation(before, after, weights)
    total = sum(weights) if weights is not None else len(before)
    size = abs(sum(after) - sum(before)) / total if total else 0.0
    if not spread > 0 or not size:
        return None
    return _fewest(lambda rows: mean_power(rows, size / spread, level), len(before), PLANNED)


def rate_power(n: int, churn: float, difference: float, level: float = LEVEL) -> float:
    """The chance that exact McNemar finds a true ``difference`` in ``n`` pairs.

    ``churn`` is the share of rows whose answer changes sides, in either direction; it is raised to
    ``difference`` where it is smaller. Exact: summed over the number of changed rows.
    """
    from scipy.stats import binom

    churn = min(1.0, max(churn, difference))
    if churn <= 0:
        return 0.0
    mean, width = n * churn, 8 * math.sqrt(n * churn) + 8
    counts = np.arange(max(0, int(mean - width)), min(n, int(mean + width)) + 1)
    tail = (1 - level) / 2
    most_lost = binom.ppf(tail, counts, 0.5)  # the first count whose lower tail reaches ``tail``
    most_lost -= binom.cdf(most_lost, counts, 0.5) > tail
    found = binom.sf(counts - most_lost - 1, counts, (1 + difference / churn) / 2)
    return float((binom.pmf(counts, n, churn) * found).sum())


def mean_power(n: int, effect: float, level: float = LEVEL) -> float:
    """The chance that a paired test of ``n`` rows finds a mean of ``effect`` deviations.

    Fewer than ``FEWEST`` rows are not planned for: the exchange test has so few ways of changing
    them that it hangs on the sign of every one.
    """
    from scipy.stats import nct, t

    if n < FEWEST:
        return 0.0
    tail = (1 - level) / 2
    return float(nct.sf(t.isf(tail, n - 1), n - 1, effect * math.sqrt(n)))


def _churn(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The share of answers that change, at the upper end of what these rows allow."""
    bounds = rate_interval(sum(changes(before, after)), len(before), 2 * POWER - 1)
    return bounds[1] if bounds else 1.0


def _assurance(n: int) -> float:
    """How much larger a deviation may be than its estimate from ``n`` rows (chi-squared)."""
    from scipy.stats import chi2

    return math.sqrt((n - 1) / float(chi2.ppf(1 - POWER, n - 1)))


def _smallest(power: Callable[[float], float], highest: float, enough: float) -> float | None:
    """The smallest difference whose power is ``enough``; None where that of ``highest`` is not."""
    if not power(highest) >= enough:
        return None
    low, high = 0.0, highest
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= enough else (middle, high)
    return high


def _fewest(power: Callable[[int], float], more_than: int, enough: float) -> int | None:
    """The rows, to half a percent, whose power is ``enough``."""
    low, high = more_than, more_than + 1
    while power(high) < enough:
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= enough else (middle, high)
    return high
