"""The verdict's arithmetic: right on known numbers, rarely wrong without an effect, able with."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcot.stats import power
from medcot.stats.paired import (
    PairedDifference,
    adjust_holm,
    compare_means,
    compare_rates,
    correct_p_values,
    corrected_level,
    rate_interval,
)

SIMULATIONS = 1_000
RESAMPLES = 399  # enough for a verdict; a report uses 9,999


# --- known numbers ---------------------------------------------------------------------------


def test_wilson_interval_of_ten_in_twenty() -> None:
    low, high = rate_interval(10, 20) or (0, 0)
    assert (low, high) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


def test_rates_at_the_edge_keep_their_interval_within_zero_and_one() -> None:
    assert rate_interval(0, 5) == (0.0, pytest.approx(0.4345, abs=1e-4))
    assert rate_interval(5, 5) == (pytest.approx(0.5655, abs=1e-4), 1.0)
    assert rate_interval(0, 0) is None


def test_mcnemar_counts_changed_answers_alone() -> None:
    """Ten gained and two lost: 2 * P(X <= 2 | 12, 1/2) = 158/4096, however many stayed."""
    few = compare_rates([0] * 10 + [1] * 2 + [1] * 8, [1] * 10 + [0] * 2 + [1] * 8)
    many = compare_rates([0] * 10 + [1] * 2 + [1] * 800, [1] * 10 + [0] * 2 + [1] * 800)
    assert few is not None
    assert many is not None
    assert few.p_value == pytest.approx(158 / 4096)
    assert many.p_value == few.p_value
    assert few.difference == pytest.approx(8 / 20)
    assert few.verdict("higher") == "improved"
    assert few.verdict("lower") == "worse"


def test_bonett_and_price_interval_by_hand() -> None:
    """gained 10, lost 2, n 20: (11 - 3)/22, plus or minus 1.96 sqrt((14/22 - (8/22)^2)/22)."""
    found = compare_rates([0] * 10 + [1] * 2 + [1] * 8, [1] * 10 + [0] * 2 + [1] * 8)
    assert found is not None
    half = 1.959964 * math.sqrt((14 / 22 - (8 / 22) ** 2) / 22)
    assert found.low == pytest.approx(8 / 22 - half, abs=1e-6)
    assert found.high == pytest.approx(8 / 22 + half, abs=1e-6)


def test_exchange_test_counts_every_way_where_rows_are_few() -> None:
    """Eight rows that all fall: 2 of the 256 exchanges are as extreme."""
    found = compare_means([2.0] * 8, [1.9 - i / 100 for i in range(8)])
    assert found is not None
    assert found.p_value == pytest.approx(2 / 256)
    assert found.verdict("lower") == "improved"


def test_mean_loss_is_weighted_by_tokens() -> None:
    found = compare_means([10.0, 300.0, 40.0], [8.0, 290.0, 41.0], [5, 100, 20])
    assert found is not None
    assert found.difference == pytest.approx((-2 - 10 + 1) / 125)


def test_holm_multiplies_the_smallest_by_the_number_of_sets() -> None:
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([]) == []
    assert corrected_level(1) == pytest.approx(0.95)
    assert corrected_level(5) == pytest.approx(0.99)


def test_a_set_significant_alone_may_not_be_among_five() -> None:
    alone = PairedDifference(0.1, 0.01, 0.19, 0.03, 100)
    others = {name: PairedDifference(0.0, -0.1, 0.1, 1.0, 100) for name in "bcde"}
    assert alone.verdict("higher") == "improved"
    assert correct_p_values({"a": alone, **others})["a"].verdict("higher") == "no evidence"


# --- nothing, and next to nothing ------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_identical_rows_differ_by_exactly_zero(losses: list[float], seed: int) -> None:
    found = compare_means(losses, losses, [1.5] * len(losses), seed=seed, resamples=99)
    assert found is not None
    assert found.difference == 0.0
    assert found.p_value == 1.0
    assert found.verdict("lower") == "no evidence"
    if len(losses) > 1:
        assert (found.low, found.high) == (0.0, 0.0)


def test_identical_answers_differ_by_zero_with_a_width() -> None:
    """That none of 24 answers changed does not show that none ever would."""
    found = compare_rates([True, False] * 12, [True, False] * 12)
    assert found is not None
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.low is not None
    assert -0.15 < found.low < 0
    assert found.verdict("higher") == "no evidence"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_rows_too_few_for_an_interval_give_none_and_no_verdict(n: int) -> None:
    found = compare_means([3.0 + i for i in range(n)], [1.0 - i**2 for i in range(n)])
    assert found is not None
    assert (found.low, found.high) == (None, None)
    assert found.verdict("lower") == "no evidence"


@pytest.mark.parametrize("n", [4, 5])
def test_five_rows_never_show_anything(n: int) -> None:
    found = compare_means([3.0 + i for i in range(n)], [1.0 + i * 1.01 for i in range(n)])
    assert found is not None
    assert found.verdict("lower") == "no evidence"


def test_no_rows_give_nothing() -> None:
    assert compare_means([], []) is None
    assert compare_rates([], []) is None


def test_rows_that_are_not_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same rows"):
        compare_means([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="not the same rows"):
        compare_rates([True], [])


def test_every_row_shifted_alike_is_a_point() -> None:
    found = compare_means([5.0] * 10, [4.5] * 10)
    assert found is not None
    assert (found.difference, found.low, found.high) == (-0.5, -0.5, -0.5)
    assert found.verdict("lower") == "improved"


def test_one_seed_gives_one_interval() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=30).tolist(), rng.normal(size=30).tolist()
    again = [compare_means(before, after, seed=seed) for seed in (7, 7, 8)]
    assert again[0] == again[1]
    assert again[0] != again[2]


# --- simulated runs --------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def even(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of uneven length whose change per token is normal, wider for short rows."""
    tokens = np.round(rng.lognormal(6.4, 0.4, n)) + 1
    return rng.normal(size=n) * tokens * (600 / tokens) ** 0.25, tokens


def heavy(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with outliers: Student's t with 3 degrees of freedom."""
    tokens = np.round(rng.lognormal(6.4, 0.4, n)) + 1
    return rng.standard_t(3, size=n) * tokens, tokens


def skewed(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The worst case for finding a fall: a long tail of rows that got worse."""
    tokens = np.round(rng.lognormal(6.4, 0.4, n)) + 1
    return (rng.exponential(size=n) - 1) * tokens, tokens


def share_improved(draw: Draw, n: int, effect: float = 0.0, runs: int = SIMULATIONS) -> float:
    """How often ``improved`` is said of a loss that fell by ``effect`` per token."""
    rng, said = np.random.default_rng(n), 0
    for seed in range(runs):
        change, tokens = draw(rng, n)
        before = 2.0 * tokens
        found = compare_means(
            before.tolist(),
            (before + change - effect * tokens).tolist(),
            tokens.tolist(),
            seed=seed,
            resamples=RESAMPLES,
        )
        said += found is not None and found.verdict("lower") == "improved"
    return said / runs


@pytest.mark.parametrize(
    ("draw", "n"),
    [(even, 8), (even, 16), (even, 50), (even, 200), (heavy, 8), (heavy, 16), (heavy, 50)],
)
def test_improved_loss_is_rarely_said_without_an_effect(draw: Draw, n: int) -> None:
    assert share_improved(draw, n) <= 0.05


@pytest.mark.parametrize(
    ("draw", "n"), [(even, 8), (even, 16), (even, 50), (even, 200), (skewed, 50)]
)
def test_detectable_loss_is_found_four_times_in_five(draw: Draw, n: int) -> None:
    """The plan is made from other rows than those it is tried on, as it would be."""
    rng = np.random.default_rng(n + 1)
    plans = []
    for _ in range(200):
        change, tokens = draw(rng, n)
        plans.append(power.detectable_mean(np.zeros(n), change, tokens))
    assert share_improved(draw, n, float(np.median(plans)), runs=60_000 // max(n, 60)) >= 0.80


def answers(
    rng: np.random.Generator, n: int, churn: float, effect: float
) -> tuple[list[bool], list[bool]]:
    """Right answers before and after; ``churn`` of them change, ``effect`` more for the better."""
    churn = max(churn, effect)
    draw = rng.random(n)
    gained, lost = draw < (churn + effect) / 2, (draw >= (churn + effect) / 2) & (draw < churn)
    stays = rng.random(n) < 0.5
    return (lost | (stays & ~gained)).tolist(), (gained | (stays & ~lost)).tolist()


def share_of_answers_improved(n: int, churn: float, effect: float = 0.0) -> float:
    rng, said = np.random.default_rng(n), 0
    for _ in range(SIMULATIONS):
        found = compare_rates(*answers(rng, n, churn, effect))
        said += found is not None and found.verdict("higher") == "improved"
    return said / SIMULATIONS


SETS = [(8, 0.4), (16, 0.3), (50, 0.2), (200, 0.1), (200, 0.3)]


@pytest.mark.parametrize(("n", "churn"), SETS)
def test_improved_accuracy_is_rarely_said_without_an_effect(n: int, churn: float) -> None:
    assert share_of_answers_improved(n, churn) <= 0.05


@pytest.mark.parametrize(("n", "churn"), SETS)
def test_detectable_accuracy_is_found_four_times_in_five(n: int, churn: float) -> None:
    rng = np.random.default_rng(n + 1)
    plans = [power.detectable_rate(*answers(rng, n, churn, 0.0)) for _ in range(50)]
    effect = float(np.median([plan for plan in plans if plan is not None]))
    assert share_of_answers_improved(n, churn, effect) >= 0.80


def test_five_sets_without_an_effect_rarely_have_one_improved() -> None:
    """Holm's correction: the chance of any false `improved` among five sets stays below 5 %."""
    rng, said = np.random.default_rng(5), 0
    for _ in range(200):
        found = {}
        for name in "abcde":
            one = compare_rates(*answers(rng, 60, 0.3, 0.0), level=corrected_level(5))
            assert one is not None
            found[name] = one
        if min(one.p_value for one in found.values()) < 0.05:  # corrected ones are larger still
            said += any(
                one.verdict("higher") == "improved" for one in correct_p_values(found).values()
            )
    assert said / 200 <= 0.05


# --- plans -----------------------------------------------------------------------------------


def test_power_of_mcnemar_agrees_with_plain_counting() -> None:
    """Simulated once with 40,000 draws for n = 60, churn 0.3, difference 0.2."""
    rng = np.random.default_rng(0)
    changed = rng.binomial(60, 0.3, 40_000)
    gained = rng.binomial(changed, (1 + 0.2 / 0.3) / 2)
    from scipy.stats import binomtest

    table = {
        (int(k), int(g)): binomtest(int(g), int(k)).pvalue < 0.05 and 2 * g > k
        for k, g in set(zip(changed.tolist(), gained.tolist(), strict=True))
        if k
    }
    counted = np.mean([table.get(pair, False) for pair in zip(changed, gained, strict=True)])
    assert power.rate_power(60, 0.3, 0.2) == pytest.approx(float(counted), abs=0.01)


def test_power_of_means_agrees_with_statsmodels() -> None:
    from statsmodels.stats.power import TTestPower

    theirs = TTestPower().power(0.5, 30, 0.05, alternative="two-sided")
    assert power.mean_power(30, 0.5) == pytest.approx(theirs, abs=1e-4)


def test_more_rows_show_smaller_differences() -> None:
    rng = np.random.default_rng(2)
    change = rng.normal(size=400)
    found = [power.detectable_mean(np.zeros(n), change[:n]) for n in (8, 16, 50, 200, 400)]
    assert found == sorted(found, reverse=True)
    assert power.detectable_mean(np.zeros(7), change[:7]) is None
    assert power.detectable_mean([1.0] * 9, [1.0] * 9) is None


def test_rows_needed_for_a_difference_would_show_it() -> None:
    rng = np.random.default_rng(3)
    half = rng.normal(size=20)
    before, after = np.zeros(40).tolist(), (np.concatenate([half, -half]) - 0.2).tolist()
    needed = power.rows_for_mean(before, after)
    assert needed is not None
    effect = abs(np.mean(after)) / np.std(after, ddof=1)
    assert power.mean_power(needed, effect) >= power.PLANNED
    assert power.mean_power(int(needed * 0.97), effect) < power.PLANNED


def test_skewed_and_outlying_changes_need_a_larger_difference() -> None:
    from scipy.stats import expon, norm, t

    places = (np.arange(60) + 0.5) / 60
    plain, skew, outlying = (
        (one - one.mean()) / one.std() for one in (f.ppf(places) for f in (norm, expon, t(3)))
    )
    size, *larger = (power.detectable_mean(np.zeros(60), one) for one in (plain, skew, outlying))
    assert size is not None
    assert all(one is not None and one > 1.02 * size for one in larger)


def test_no_number_of_rows_shows_a_difference_of_zero() -> None:
    assert power.rows_for_mean([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert power.rows_for_mean([1.0, 2.0], [2.0, 1.0]) is None
    assert power.rows_for_rate([True, False], [False, True]) is None


def test_a_hair_of_a_difference_is_beyond_a_million_rows() -> None:
    rng = np.random.default_rng(4)
    change = rng.normal(size=100)
    assert power.rows_for_mean(np.zeros(100), change - change.mean() + 1e-6) is None
