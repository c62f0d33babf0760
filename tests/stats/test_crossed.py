"""Rows and seeds as crossed random effects: the interval, the p-value, and how often both err."""

import numpy as np
import pytest

from medcot.stats import paired
from medcot.stats.crossed import _seed_variance, compare_losses, compare_rates


def draw(seed, seeds, rows, of_seeds, of_rows, of_both, mean=0.0):
    """Changes [seeds, rows] summed over each row's tokens, and the tokens."""
    rng = np.random.default_rng(seed)
    tokens = np.round(rng.lognormal(6, 0.4, rows)) + 1
    changes = mean + of_seeds * rng.normal(size=(seeds, 1)) + of_rows * rng.normal(size=rows)
    return (changes + of_both * rng.normal(size=(seeds, rows))) * tokens, tokens


def compare(changes, tokens, **options):
    zeros = [0.0] * len(tokens)
    return compare_losses(zeros, changes.tolist(), tokens.tolist(), **options)


def test_seeds_that_do_not_differ_change_nothing():
    changes, tokens = draw(1, 1, 20, 0, 0.3, 0, mean=-0.2)
    one = paired.compare_means([0.0] * 20, changes[0].tolist(), tokens.tolist())
    found = compare(np.repeat(changes, 4, axis=0), tokens)
    assert (found.low, found.high) == pytest.approx((one.low, one.high))
    assert (found.difference, found.p_value) == pytest.approx((one.difference, one.p_value))
    assert found.deviation == pytest.approx(0, abs=1e-12)
    assert found.by_seed == pytest.approx([one.difference] * 4)


def test_seeds_that_differ_widen_the_interval_and_weaken_the_test():
    changes, tokens = draw(2, 3, 30, 0, 0.2, 0.02, mean=-0.3)
    apart = changes + np.array([[-0.2], [0.0], [0.2]]) * tokens
    alike, differing = compare(changes, tokens), compare(apart, tokens)
    assert differing.difference == pytest.approx(alike.difference)
    assert differing.low < alike.low < alike.high < differing.high
    assert alike.verdict("lower") == "improved"
    assert differing.verdict("lower") == "no evidence"
    assert differing.p_value > 0.05 > alike.p_value
    assert differing.detectable > alike.detectable


def test_the_p_value_agrees_with_the_interval():
    for seed in range(12):
        changes, tokens = draw(seed, 4, 25, 0.1, 0.3, 0.1, mean=-0.17)
        found = compare(changes, tokens)
        if not 0.03 < found.p_value < 0.07:  # The rows' own two methods differ a little.
            assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_a_mixed_model_of_statsmodels_finds_the_same_variances():
    pandas = pytest.importorskip("pandas")
    from statsmodels.regression.mixed_linear_model import MixedLM

    changes, _ = draw(3, 5, 30, 0.5, 1.0, 0.4)
    seeds, rows = changes.shape
    changes = changes / changes.std()
    data = pandas.DataFrame({
        "y": changes.ravel(), "seed": np.repeat(np.arange(seeds), rows),
        "row": np.tile(np.arange(rows), seeds), "all": 1,
    })  # fmt: skip
    parts = {"seed": "0 + C(seed)", "row": "0 + C(row)"}
    model = MixedLM.from_formula("y ~ 1", groups="all", vc_formula=parts, data=data)
    fitted = model.fit(reml=True)
    ours, _, _ = _seed_variance(changes, np.ones(rows))
    theirs = dict(zip(sorted(parts), fitted.vcomp, strict=True))["seed"]
    assert ours == pytest.approx(theirs, rel=0.05)


def test_rates_over_seeds_count_rows_and_seeds():
    rng = np.random.default_rng(4)
    before = rng.random(200) < 0.4
    gained = [before | (rng.random(200) < 0.25) for _ in range(3)]
    found = compare_rates(before.tolist(), [one.tolist() for one in gained])
    assert found.verdict("higher") == "improved"
    assert found.difference == pytest.approx(np.mean(found.by_seed))
    assert found.low < found.difference < found.high
    same = compare_rates(before.tolist(), [before.tolist()] * 3)
    assert (same.difference, same.p_value, same.verdict("higher")) == (0, 1.0, "no evidence")
    assert same.low < 0 < same.high
    assert compare_rates([], [[], []]) is None


def test_seeds_alone_are_seldom_called_an_improvement():
    """``bench/verdicts.py --only seeds`` does this a thousand times for each case."""
    called = held = rows_alone = 0
    for seed in range(80):
        changes, tokens = draw(seed, 3, 24, 1.0, 0.0, 0.1)
        found = compare(changes, tokens, resamples=199)
        called += found.verdict("lower") == "improved"
        held += found.low <= 0 <= found.high
        rows_alone += abs(changes.sum() / tokens.sum() / 3) > 0.1
    assert called <= 6
    assert held >= 70
    assert rows_alone > 40
