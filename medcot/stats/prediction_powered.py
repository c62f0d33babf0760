"""Corrects the mean that a judge finds by the error that it makes where the truth is known.

Prediction-powered inference: the judge's values of all rows say much cheaply, and the differences
between truth and judge on a random part of the rows remove its bias. Angelopoulos and others 2023,
"Prediction-powered inference"; with the weight of "PPI++" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medcot.stats.libraries import Numbers, student_t, upper_t
from medcot.stats.paired import LEVEL, PairedDifference

FEWEST_CHECKED = 10
"""Rows of known truth below which there is no interval."""


def correct_mean(
    judged: Sequence[float],
    checked: Sequence[float],
    truth: Sequence[float],
    *,
    step: float = 0.0,
    level: float = LEVEL,
) -> PairedDifference | None:
    """Estimate the mean of the truth over all rows, of which only some were checked.

    The interval is Student's t. Two things keep it honest where few rows were checked
    (``docs/experiments.md``, The judge's error): the weight of the judge costs a degree of freedom,
    and one error of ``step`` in either direction is added to those seen, so that a judge without
    an error in ten rows is not taken to be without any.

    Args:
        judged: [unchecked rows] the judge's values; the rows that were checked are not among them.
        checked: [checked rows] the judge's values of a random part of the rows.
        truth: [checked rows]
        step: The size of one error, in the values' unit.

    Returns:
        The corrected mean as the difference, over all rows; None if too few were checked.
    """
    values, known, true = (np.asarray(one, float) for one in (judged, checked, truth))
    m = len(true)
    if m < FEWEST_CHECKED:
        return None
    weight = weigh_judge(values, known, true)
    error = true - weight * known
    free = m - 2
    squares = float(((error - error.mean()) ** 2).sum()) + 2 * step**2
    mean, variance = float(error.mean()), squares / free / m
    if weight:
        mean += weight * float(values.mean())
        variance += weight**2 * float(values.var(ddof=1)) / len(values)
    deviation = math.sqrt(variance)
    half = upper_t((1 - level) / 2, free) * deviation
    p = 2 * float(student_t().sf(abs(mean) / deviation, free)) if deviation else float(not mean)
    return PairedDifference(mean, mean - half, mean + half, p, m + len(values), level)


def weigh_judge(judged: Numbers, checked: Numbers, truth: Numbers) -> float:
    """Return the weight, 0 to 1, at which the judge's values shorten the interval most.

    A judge that says nothing about the truth gets 0: then the checked rows alone count.
    """
    if len(judged) < 2:
        return 0.0
    spread = float(np.concatenate([judged, checked]).var(ddof=1)) * (1 + len(truth) / len(judged))
    if spread <= 0:
        return 0.0
    shared = float(np.cov(truth, checked)[0, 1])
    return min(1.0, max(0.0, shared / spread))
