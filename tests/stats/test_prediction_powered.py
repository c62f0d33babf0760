"""A judge's error corrects the interval: a biased judge does not move it off the truth."""

from __future__ import annotations

import numpy as np
import pytest

from medcot.evaluation.pair_labels import ONE_ERROR
from medcot.stats.prediction_powered import FEWEST_CHECKED, correct_mean, weigh_judge

QUESTIONS, CHECKED, CRITERIA, BIAS, GAIN = 60, 20, 5, 0.2, 0.1


def judge_run(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The true change of each question's share of criteria, and what a judge says of it.

    The judge misreads 2 % of the criteria, and favours the tuned model by 20 points: it takes
    criteria as met that its answers do not meet.
    """
    hard = rng.beta(1.5, 1.5, (QUESTIONS, 1))
    before = rng.random((QUESTIONS, CRITERIA)) >= hard
    after = rng.random((QUESTIONS, CRITERIA)) >= hard * (1 - 2 * GAIN)
    said_before = before ^ (rng.random(before.shape) < 0.02)
    missed = 0.5 * (1 - 2 * GAIN)
    favoured = ~after & (rng.random(after.shape) < BIAS / missed)
    said_after = (after ^ (rng.random(after.shape) < 0.02)) | favoured
    return (
        after.mean(1, dtype=float) - before.mean(1, dtype=float),
        said_after.mean(1, dtype=float) - said_before.mean(1, dtype=float),
    )


def test_an_interval_corrected_for_a_bias_of_20_points_holds_the_truth() -> None:
    rng, corrected, alone, bias, runs = np.random.default_rng(14), 0, 0, 0.0, 1_000
    for _ in range(runs):
        true, said = judge_run(rng)
        found = correct_mean(
            said[CHECKED:].tolist(), said[:CHECKED].tolist(), true[:CHECKED].tolist(),
            step=1 / CRITERIA,
        )  # fmt: skip
        margin = 1.96 * said.std(ddof=1) / np.sqrt(QUESTIONS)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        corrected += found.low <= GAIN <= found.high
        alone += abs(said.mean() - GAIN) <= margin
        bias += (said - true).mean() / runs
    assert bias == pytest.approx(BIAS, abs=0.02)
    assert corrected / runs >= 0.95
    assert alone / runs < 0.1


def test_so_does_an_interval_of_wins_minus_losses() -> None:
    """Ties and errors of a whole step: a pair is won (1), lost (-1) or neither (0)."""
    rng, runs = np.random.default_rng(15), 1_000
    true = rng.choice([1.0, 0.0, -1.0], (runs, 60), p=[0.4, 0.3, 0.3])
    moved = rng.random(true.shape) < BIAS / 0.6  # of those that are not won
    said = np.where(rng.random(true.shape) < 0.05, 0.0, np.minimum(true + moved, 1))
    held = 0
    for one, seen in zip(true.tolist(), said.tolist(), strict=True):
        found = correct_mean(seen[20:], seen[:20], one[:20], step=ONE_ERROR)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= GAIN <= found.high
    assert (said - true).mean() == pytest.approx(BIAS, abs=0.02)
    assert held / runs >= 0.95


def test_a_good_judge_shortens_the_interval_of_the_checked_rows() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(size=300)
    said = true + 0.2 * rng.normal(size=300) + 1
    ours = correct_mean(said[30:].tolist(), said[:30].tolist(), true[:30].tolist())
    without = correct_mean([], said[:30].tolist(), true[:30].tolist())
    assert ours is not None
    assert without is not None
    assert ours.high is not None
    assert without.high is not None
    assert ours.high - ours.difference < 0.5 * (without.high - without.difference)
    assert abs(ours.difference - true.mean()) < 0.15
    assert (ours.n, without.n) == (300, 30)
    assert without.difference == pytest.approx(true[:30].mean())


def test_a_judge_that_says_nothing_gets_no_weight() -> None:
    rng = np.random.default_rng(5)
    true, said = rng.normal(size=20), rng.normal(size=200)
    assert weigh_judge(said[20:], said[:20], true) < 0.4
    assert weigh_judge(said[20:], -true, true) == 0
    assert weigh_judge(np.ones(9), np.ones(20), true) == 0


def test_a_judge_without_an_error_in_ten_rows_still_has_a_width() -> None:
    found = correct_mean([0.0] * 40, [0.0] * 10, [0.0] * 10, step=0.5)
    assert found is not None
    assert found.high is not None
    assert found.high > 0.1
    assert found.verdict("higher") == "no evidence"


def test_too_few_checked_rows_have_no_interval() -> None:
    few = [0.5] * (FEWEST_CHECKED - 1)
    assert correct_mean([0.5] * 30, few, few) is None


def test_the_estimate_is_that_of_ppi_python() -> None:
    """``ppi_mean_pointestimate`` and ``ppi_mean_ci`` of ppi-python 0.2.3, on the same numbers.

    It needs numba and scikit-learn, so it is no dependency. Its interval is the normal one.
    """
    rng = np.random.default_rng(8)
    true = rng.normal(size=400)
    said = true + 0.5 * rng.normal(size=400) + 0.3
    ours = correct_mean(said[200:].tolist(), said[:200].tolist(), true[:200].tolist())
    assert ours is not None
    assert ours.difference == pytest.approx(-0.0221, abs=5e-4)
    assert (ours.low, ours.high) == (
        pytest.approx(-0.1302, abs=2e-3),
        pytest.approx(0.0860, abs=2e-3),
    )
