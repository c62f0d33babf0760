"""Types the functions of scipy and statsmodels that this package uses: they have no type stubs.

Both take a second to import, so each function imports what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


class Continuous(Protocol):
    """A continuous distribution of scipy; ``shapes`` are its parameters."""

    def ppf(self, q: float, *shapes: float) -> float:
        """Return the quantile of ``q``."""
        ...

    def sf(self, x: float, *shapes: float) -> float:
        """Return the probability of more than ``x``."""
        ...

    def isf(self, q: float, *shapes: float) -> float:
        """Return the value that is exceeded with probability ``q``."""
        ...


class Binomial(Protocol):
    """The binomial distribution of ``n`` draws with probability ``p``, over arrays."""

    def ppf(self, q: float, n: Counts, p: float) -> Numbers:
        """Return the quantiles of ``q``."""
        ...

    def cdf(self, k: Numbers, n: Counts, p: float) -> Numbers:
        """Return the probabilities of at most ``k``."""
        ...

    def sf(self, k: Numbers, n: Counts, p: float) -> Numbers:
        """Return the probabilities of more than ``k``."""
        ...

    def pmf(self, k: Counts, n: int, p: float) -> Numbers:
        """Return the probabilities of ``k``."""
        ...


def _scipy_stats() -> Any:
    import scipy.stats  # pyright: ignore[reportMissingTypeStubs]

    return scipy.stats


def normal() -> Continuous:
    """Return the standard normal distribution."""
    return _scipy_stats().norm


def student_t() -> Continuous:
    """Return Student's t distribution, of its degrees of freedom."""
    return _scipy_stats().t


def noncentral_t() -> Continuous:
    """Return the noncentral t distribution, of its degrees of freedom and its noncentrality."""
    return _scipy_stats().nct


def chi_squared() -> Continuous:
    """Return the chi-squared distribution, of its degrees of freedom."""
    return _scipy_stats().chi2


def binomial() -> Binomial:
    """Return the binomial distribution."""
    return _scipy_stats().binom


def binomial_p_value(successes: int, n: int) -> float:
    """Return the exact two-sided p-value of ``successes`` of ``n`` under equal chances."""
    return float(_scipy_stats().binomtest(successes, n).pvalue)


def exchange_p_value(d: Numbers, resamples: int, batch: int, seed: int) -> float:
    """Return the p-value of sum(d) under exchanged signs: exact, or by ``resamples`` drawn."""

    def total(x: Numbers, axis: int = -1) -> Numbers:
        return cast("Numbers", x.sum(axis=axis))

    found = _scipy_stats().permutation_test(
        (d,),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=batch,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def upper_normal(tail: float) -> float:
    """Return what a standard normal number exceeds with probability ``tail``; quick."""
    import scipy.special  # pyright: ignore[reportMissingTypeStubs]

    untyped: Any = scipy.special
    return -float(untyped.ndtri(tail))


def upper_t(tail: float, free: int) -> float:
    """Return what t with ``free`` degrees of freedom exceeds with probability ``tail``; quick."""
    import scipy.special  # pyright: ignore[reportMissingTypeStubs]

    untyped: Any = scipy.special
    return -float(untyped.stdtrit(free, tail))


def find_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where ``function``, of different signs at ``low`` and ``high``, is zero."""
    import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]

    untyped: Any = scipy.optimize
    return float(untyped.brentq(function, low, high))


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Return the p-value of McNemar's exact test."""
    import statsmodels.stats.contingency_tables as tables  # pyright: ignore[reportMissingTypeStubs]

    untyped: Any = tables
    return float(untyped.mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def wilson_interval(successes: int, n: int, level: float) -> tuple[float, float]:
    """Return Wilson's interval of a rate, within 0 and 1."""
    import statsmodels.stats.proportion as proportion  # pyright: ignore[reportMissingTypeStubs]

    untyped: Any = proportion
    low, high = untyped.proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's method, in the order given."""
    import statsmodels.stats.multitest as multitest  # pyright: ignore[reportMissingTypeStubs]

    if not p_values:
        return []
    untyped: Any = multitest
    return [float(p) for p in untyped.multipletests(p_values, method="holm")[1]]
