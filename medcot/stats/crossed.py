"""Compares rows that several trainings scored: test rows and seeds both are samples.

A training with another seed gives another adapter, and other test rows give another change. The
changes form a table of seeds by rows, whose two sides are crossed random effects. Its mean says
what the recipe does; its interval must cover other rows and other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from medcot.stats import paired, power
from medcot.stats.libraries import (
    Numbers,
    chi_squared,
    find_root,
    noncentral_t,
    upper_normal,
    upper_t,
)
from medcot.stats.paired import LEVEL, PairedDifference

TINY = 1e-12


@dataclass(frozen=True, slots=True)
class CrossedDifference(PairedDifference):
    """The mean change of ``n`` rows over seeds; interval and p-value cover rows and seeds.

    ``by_seed`` has each seed's own change and ``deviation`` their standard deviation.
    ``detectable`` is the smallest change that as many rows and seeds would show four times out of
    five.
    """

    by_seed: tuple[float, ...] = ()
    deviation: float = 0.0
    detectable: float | None = None


def compare_losses(
    before: Sequence[float],
    after: Sequence[Sequence[float]],
    weights: Sequence[float],
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = paired.RESAMPLES,
) -> CrossedDifference | None:
    """Compare ``sum(values) / sum(weights)`` of rows before with those of each seed after.

    Args:
        before: [rows]
        after: [seeds, rows]; two seeds at least.
        weights: [rows]
    """
    changes, w = np.asarray(after, float) - np.asarray(before, float), np.asarray(weights, float)
    mean = changes.mean(axis=0)
    zeros = [0.0] * len(mean)
    rows = paired.compare_means(
        zeros, mean.tolist(), w.tolist(), seed=seed, level=level, resamples=resamples
    )
    if rows is None:
        return None
    detectable = power.detectable_mean(zeros, mean.tolist(), w.tolist())
    return _add_seeds(rows, changes, w, detectable)


def compare_rates(
    before: Sequence[bool], after: Sequence[Sequence[bool]], *, seed: int = 0, level: float = LEVEL
) -> CrossedDifference | None:
    """Compare the rate of rows before with that of each seed after, [seeds, rows].

    One row that every seed gained and one that every seed lost are added for the interval, as
    Bonett and Price do for one seed.
    """
    changes = np.asarray(after, float) - np.asarray(before, float)
    if not changes.size:
        return None
    mean, n = changes.mean(axis=0), changes.shape[1]
    centre = float(mean.sum()) / (n + 2)
    error = math.sqrt((((mean**2).sum() + 2) / (n + 2) - centre**2) / (n + 2))
    half = upper_normal((1 - level) / 2) * error
    rows = PairedDifference(
        difference=float(mean.mean()),
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p_value=paired.exchange_test(mean[mean != 0], seed=seed),
        n=n,
        level=level,
    )
    shape = paired.ChangeShape(error * math.sqrt(n + 2))
    detectable = power.detectable_from_shape(n, shape)
    return _add_seeds(rows, changes, np.ones_like(mean), detectable)


def _add_seeds(
    rows: PairedDifference, changes: Numbers, weights: Numbers, detectable: float | None
) -> CrossedDifference:
    """Widen the interval and the p-value of the rows by what the seeds add.

    The squares of the two half-widths add up (MOVER: Zou and Donner 2008, "Construction of
    confidence limits about effect measures"): that of the rows from their own method, and Student's
    t for the seeds. ``docs/experiments.md`` compares it with Satterthwaite's and others.
    """
    seeds = len(changes)
    by_seed = changes.sum(axis=1) / weights.sum()
    variance, between, within = _seed_variance(changes, weights)
    error = math.sqrt(variance / seeds)
    half = upper_t((1 - rows.level) / 2, seeds - 1) * error
    mean, low, high = rows.difference, rows.low, rows.high
    # Rates are centred a little nearer to zero than their mean is.
    return CrossedDifference(
        difference=mean,
        low=None if low is None else mean - math.hypot(mean - low, half),
        high=None if high is None else mean + math.hypot(high - mean, half),
        p_value=_combine(rows.p_value, abs(mean), error, seeds),
        n=rows.n,
        level=rows.level,
        by_seed=tuple(float(one) for one in by_seed),
        deviation=float(by_seed.std(ddof=1)),
        detectable=_detectable(detectable, between, within, seeds),
    )


def _seed_variance(changes: Numbers, weights: Numbers) -> tuple[float, float, float]:
    """Return the variance of the seeds' true changes, and the two it is the difference of.

    They are the variance of the seeds' observed changes and the part of it that comes from the
    rows' number: the mean squares of a two-way analysis of variance, over the number of rows.
    """
    ratio = changes.sum() / (len(changes) * weights.sum())
    residual = (changes - ratio * weights) / weights.mean()
    of_seeds = residual.mean(axis=1, keepdims=True)
    rest = residual - of_seeds - residual.mean(axis=0, keepdims=True)
    seeds, n = changes.shape
    between = float((of_seeds**2).sum()) / (seeds - 1)
    within = float((rest**2).sum()) / ((seeds - 1) * max(1, n - 1)) / n
    # Seeds that agree to the last digit differ by rounding alone.
    scale = TINY * float(ratio) ** 2
    return max(0.0, between - within) if between > scale else 0.0, between, within


def _combine(p_rows: float, size: float, error: float, seeds: int) -> float:
    """Return the level at which the interval of rows and seeds just reaches zero."""
    if p_rows >= 1 or not size or not error:
        return p_rows
    of_rows, of_seeds = upper_normal(p_rows / 2), error / size

    def beyond(p: float) -> float:
        rows = upper_normal(p / 2) / of_rows
        return rows**2 + (upper_t(p / 2, seeds - 1) * of_seeds) ** 2 - 1

    return find_root(beyond, p_rows / 2, 1.0)


def _detectable(of_rows: float | None, between: float, within: float, seeds: int) -> float | None:
    """Add what the seeds hide to what the rows do; both by the upper end of their spread."""
    if of_rows is None:
        return None
    free = seeds - 1
    upper = between * free / float(chi_squared().ppf(1 - power.POWER, free))
    shift = _noncentrality(free)
    if shift is None:
        return None
    return math.hypot(of_rows, shift * math.sqrt(max(0.0, upper - within) / seeds))


@cache
def _noncentrality(free: int) -> float | None:
    """Return the mean, in standard errors, that a t-test finds with the planned power."""
    limit = upper_t((1 - LEVEL) / 2, free)
    return power.smallest(
        lambda size: float(noncentral_t().sf(limit, free, size)), 100.0, power.PLANNED
    )
