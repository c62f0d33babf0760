"""How often the verdict is wrong without an effect, and finds one that the report calls detectable.

    python bench/verdicts.py            # all tables of docs/experiments.md: long
    python bench/verdicts.py --runs 200 # a quick look
    python bench/verdicts.py --rows 8   # some of the lines: each has a seed of its own
    python bench/verdicts.py --only cost     # one table; --help lists the others

Each simulated run draws the change of its test rows' loss, and is judged by the library's own
functions. ``even`` is normal, ``heavy`` has outliers (Student's t, 3 degrees of freedom) and
``skewed`` is exponential with its long tail upwards, the worst case for a false `improved`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.stats import bootstrap, norm
from scipy.stats import t as student

from medcot.evaluation.pair_labels import ONE_ERROR
from medcot.stats import crossed, power
from medcot.stats.paired import compare_means, compare_rates
from medcot.stats.prediction_powered import correct_mean

RESAMPLES = 999
ROWS = (8, 16, 50, 200)
ANSWERS = ((8, 0.4), (16, 0.3), (50, 0.2), (200, 0.1), (200, 0.3), (1_000, 0.2))
Draw = Callable[[np.random.Generator, int], np.ndarray]
CHANGES: dict[str, Draw] = {
    "even": lambda rng, n: rng.normal(size=n),
    "heavy": lambda rng, n: rng.standard_t(3, size=n),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1,
}


def draw(kind: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Changes summed over each row's tokens, and the tokens (median 600, some thrice that)."""
    tokens = np.round(rng.lognormal(6.4, 0.4, n)) + 1
    return CHANGES[kind](rng, n) * tokens, tokens


def scipy_interval(
    change: np.ndarray, tokens: np.ndarray, method: str, seed: int
) -> tuple[float, float]:
    """The interval that was not chosen: ``scipy.stats.bootstrap`` with ``method``."""

    def ratio(d: np.ndarray, w: np.ndarray, axis: int = -1) -> np.ndarray:
        return d.sum(axis=axis) / w.sum(axis=axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = bootstrap(
            (change, tokens),
            ratio,
            paired=True,
            n_resamples=RESAMPLES,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return found.low, found.high


def without_effect(kind: str, n: int, runs: int) -> dict[str, float]:
    """Shares of runs: falsely `improved`, and intervals that hold the true zero, by method."""
    rng, count = np.random.default_rng(n), dict.fromkeys(HEADINGS, 0)
    for seed in range(runs):
        change, tokens = draw(kind, rng, n)
        ours = compare_means(
            np.zeros(n).tolist(), change.tolist(), tokens.tolist(), seed=seed, resamples=RESAMPLES
        )
        assert ours is not None
        assert ours.low is not None
        assert ours.high is not None
        count["improved: verdict"] += ours.verdict("lower") == "improved"
        count["improved: interval alone"] += ours.high < 0
        count["improved: test alone"] += ours.p_value < 0.05 and ours.difference < 0
        count["zero inside: ours"] += ours.low <= 0 <= ours.high
        for method in ("percentile", "BCa"):
            low, high = scipy_interval(change, tokens, method, seed)
            count[f"improved: {method}"] += high < 0
            count[f"zero inside: {method}"] += low <= 0 <= high
    return {name: number / runs for name, number in count.items()}


HEADINGS = (
    "improved: verdict",
    "improved: interval alone",
    "improved: test alone",
    "improved: percentile",
    "improved: BCa",
    "zero inside: ours",
    "zero inside: percentile",
    "zero inside: BCa",
)


def found_loss(kind: str, n: int, runs: int) -> float:
    """How often a run finds the effect that another run of its size calls detectable."""
    rng, found = np.random.default_rng(n + 1), 0
    for seed in range(runs):
        planned = power.detectable_mean(np.zeros(n), *draw(kind, rng, n))
        change, tokens = draw(kind, rng, n)
        after = change - (planned or 0) * tokens
        one = compare_means(
            np.zeros(n).tolist(), after.tolist(), tokens.tolist(), seed=seed, resamples=RESAMPLES
        )
        found += one is not None and one.verdict("lower") == "improved"
    return found / runs


def answers(
    rng: np.random.Generator, n: int, churn: float, effect: float
) -> tuple[list[bool], list[bool]]:
    churn = max(churn, effect)
    u, stays = rng.random(n), rng.random(n) < 0.5
    gained, lost = u < (churn + effect) / 2, (u >= (churn + effect) / 2) & (u < churn)
    return (lost | (stays & ~gained)).tolist(), (gained | (stays & ~lost)).tolist()


def judge_answers(n: int, churn: float, runs: int) -> tuple[float, float]:
    """Shares of `improved` without an effect, and with the one called detectable."""
    rng, false, found = np.random.default_rng(n), 0, 0
    for _ in range(runs):
        one = compare_rates(*answers(rng, n, churn, 0))
        false += one is not None and one.verdict("higher") == "improved"
        planned = power.detectable_rate(*answers(rng, n, churn, 0)) or 0
        one = compare_rates(*answers(rng, n, churn, planned))
        found += one is not None and one.verdict("higher") == "improved"
    return false / runs, found / runs


COST = ((72, 0.3), (72, 0.6), (72, 0.9), (48, 0.6), (24, 0.6))
CHURN = (0.05, 0.15, 0.3)


def verdict_table(n: int) -> np.ndarray:
    """The library's verdict for every number of gained and lost items: 1 improved, -1 worse."""
    signs = {"improved": 1, "worse": -1, "no evidence": 0}
    table = np.zeros((n + 1, n + 1), int)
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            before = [False] * gained + [True] * lost + [True] * (n - gained - lost)
            after = [True] * gained + [False] * lost + [True] * (n - gained - lost)
            found = compare_rates(before, after)
            table[gained, lost] = signs[found.verdict("higher")] if found else 0
    return table


def cost_of_training(
    n: int, passed: float, churn: float, runs: int, table: np.ndarray
) -> tuple[float, float, float, float]:
    """Shares of false alarms, of damage found, and the mean size that is called detectable.

    Items differ in difficulty: each has its own chance to be passed, around ``passed``. Without
    an effect a share ``churn`` of the items is answered anew, as a hardly changed model does.
    Damage: a quarter of all items, or half, are lost where they were passed.
    """
    rng = np.random.default_rng([n, round(100 * passed), round(100 * churn)])
    skill = rng.beta(2 * passed, 2 * (1 - passed), (runs, n))
    before = rng.random((runs, n)) < skill
    anew = rng.random((runs, n)) < churn
    after = np.where(anew, rng.random((runs, n)) < skill, before)

    def judge(after: np.ndarray) -> np.ndarray:
        return table[(~before & after).sum(axis=1), (before & ~after).sum(axis=1)]

    quarter, half = (judge(after & (rng.random((runs, n)) >= share)) for share in (0.25, 0.5))
    detectable = [
        power.detectable_rate(before[run].tolist(), after[run].tolist()) or 1.0
        for run in range(min(runs, 20))
    ]
    return (
        float((judge(after) != 0).mean()),
        float((quarter == -1).mean()),
        float((half == -1).mean()),
        float(np.mean(detectable)),
    )


def print_cost(runs: int) -> None:
    heads = "false alarms | a quarter lost: worse | half lost: worse | called detectable (points)"
    print(f"\n| items | passed before | answered anew | {heads} |\n|{' --: |' * 7}")
    for n, passed in COST:
        table = verdict_table(n)
        for churn in CHURN:
            false, quarter, half, size = cost_of_training(n, passed, churn, runs, table)
            shares = " | ".join(f"{100 * one:.1f}" for one in (false, quarter, half, size))
            print(f"| {n} | {passed:.0%} | {churn:.0%} | {shares} |")


PARTS = {
    "seeds differ": (1.0, 0.0, 0.1),
    "rows differ": (0.0, 1.0, 0.1),
    "both": (0.2, 1.0, 0.3),
    "each row its own way": (0.02, 0.1, 1.0),
}
"""Standard deviations of seeds, of rows, and of a row in one seed."""


def draw_seeds(
    rng: np.random.Generator, parts: tuple[float, float, float], seeds: int, n: int, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Changes [seeds, rows] summed over each row's tokens, whose mean over seeds and rows is zero
    but for chance, and the tokens."""
    of_seeds, of_rows, of_both = parts
    tokens = np.round(rng.lognormal(6.4, 0.4, n)) + 1
    changes = of_seeds * rng.normal(size=(seeds, 1)) + of_rows * CHANGES[kind](rng, n)
    return (changes + of_both * rng.normal(size=(seeds, n))) * tokens, tokens


def judge_seeds(
    parts: tuple[float, float, float], seeds: int, n: int, kind: str, runs: int
) -> tuple[float, float, float, float]:
    """Shares of runs: falsely `improved`; `improved` by a t-test of rows alone; zero inside the
    interval; and the size that another run calls detectable is found."""
    rng, count, planned = np.random.default_rng(1000 * seeds + n), np.zeros(4), 0.0
    for seed in range(runs + 1):
        for planted in (0.0, planned):
            changes, tokens = draw_seeds(rng, parts, seeds, n, kind)
            changes -= planted * tokens
            found = crossed.compare_losses(
                np.zeros(n).tolist(), changes.tolist(), tokens.tolist(),
                seed=seed, resamples=RESAMPLES,
            )  # fmt: skip
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            if planted:
                count[3] += found.verdict("lower") == "improved"
                continue
            if seed:  # The first run only says what the second one plants.
                means, share = changes.mean(0), tokens / tokens.sum()
                residual = means - means.sum() * share
                error = np.sqrt((residual**2).sum() * n / (n - 1)) / tokens.sum()
                alone = means.sum() / tokens.sum() / error
                count[:3] += (
                    found.verdict("lower") == "improved",
                    alone < -student.isf(0.025, n - 1),
                    found.low <= 0 <= found.high,
                )
            detectable = found.detectable
        planned = detectable or 0.0
    return tuple((count / runs).tolist())


def print_seeds(runs: int) -> None:
    heads = ("rows", "changes", "what differs", "seeds", "improved: verdict",
             "improved: rows alone", "zero inside", "detectable is found")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n| --: | :-- | :-- |{' --: |' * 5}")
    lines = [(24, "even", name) for name in PARTS] + [(100, "even", "both"), (24, "skewed", "both")]
    for n, kind, name in lines:
        for seeds in (3, 5, 10):
            shares = judge_seeds(PARTS[name], seeds, n, kind, runs)
            cells = " | ".join(f"{100 * share:.1f}" for share in shares)
            print(f"| {n} | {kind} | {name} | {seeds} | {cells} |", flush=True)


def try_methods(
    parts: tuple[float, float, float], seeds: int, n: int, kind: str, runs: int
) -> dict[str, float]:
    """Shares of runs whose interval over rows and seeds holds the true zero, by how it is built.

    The mean squares of rows, seeds and their interaction are added up in different ways. All runs
    are computed at once.
    """
    rng = np.random.default_rng([seeds, n])
    of_seeds, of_rows, of_both = parts
    d = of_seeds * rng.normal(size=(runs, seeds, 1)) + of_rows * CHANGES[kind](
        rng, runs * n
    ).reshape(runs, 1, n)
    d = d + of_both * rng.normal(size=(runs, seeds, n))
    mean = d.mean((1, 2))
    left = d - mean[:, None, None]
    a, b = left.mean(2, keepdims=True), left.mean(1, keepdims=True)
    of_a = n * (a**2).sum((1, 2)) / (seeds - 1)
    of_b = seeds * (b**2).sum((1, 2)) / (n - 1)
    rest = ((left - a - b) ** 2).sum((1, 2)) / ((seeds - 1) * (n - 1))

    def holds(variance: np.ndarray, free: np.ndarray) -> float:
        half = student.isf(0.025, np.clip(free, 1, None)) * np.sqrt(variance / (n * seeds))
        return float((abs(mean) <= half).mean())

    def satterthwaite(variance: np.ndarray, *, interaction: bool = True) -> np.ndarray:
        parts = of_b**2 / (n - 1) + of_a**2 / (seeds - 1)
        return variance**2 / (parts + interaction * rest**2 / ((n - 1) * (seeds - 1)))

    plain = np.maximum(of_a + of_b - rest, 1e-12)
    floored = np.maximum(plain, np.maximum(of_a, of_b))
    squares = student.isf(0.025, n - 1) ** 2 * of_b + student.isf(
        0.025, seeds - 1
    ) ** 2 * np.maximum(of_a - rest, 0)
    return {
        "Satterthwaite": holds(plain, satterthwaite(plain)),
        "Hillis": holds(plain, np.minimum(plain**2 * (seeds - 1) / of_a**2, n - 1)),
        "not below its parts": holds(floored, satterthwaite(floored)),
        "parts added": holds(of_a + of_b, satterthwaite(of_a + of_b, interaction=False)),
        "MOVER": float((abs(mean) <= np.sqrt(squares / (n * seeds))).mean()),
    }


def print_methods(runs: int) -> None:
    names = list(try_methods(PARTS["both"], 3, 8, "even", 10))
    print(f"\n| rows | changes | what differs | seeds | {' | '.join(names)} |")
    print(f"| --: | :-- | :-- |{' --: |' * (len(names) + 1)}")
    for kind in ("even", "skewed"):
        for what, parts in PARTS.items():
            for seeds in (3, 10):
                found = try_methods(parts, seeds, 16, kind, 10 * runs)
                cells = " | ".join(f"{100 * share:.1f}" for share in found.values())
                print(f"| 16 | {kind} | {what} | {seeds} | {cells} |")


ARMS = 8


def choose_among(
    arms: int, seeds: int, own: float, runs: int, *, by_test: bool
) -> tuple[float, float]:
    """Shares of studies without an effect whose chosen arm is `improved`: at the level that pays
    for the choice, and at the plain one.

    A seed that is good (``own``: standard deviation of seeds) is so on validation and test rows.
    The arm is chosen by validation or, as nobody should, ``by_test``.
    """
    rng, count = np.random.default_rng([arms, seeds, round(1000 * own)]), np.zeros(2)
    for run in range(runs):
        parts = (0.0, 1.0, 0.3)
        drawn = [draw_seeds(rng, parts, seeds, 24, "even") for _ in range(arms)]
        shifts = own * rng.normal(size=(arms, seeds))
        tests = [
            (changes + shift[:, None] * tokens, tokens)
            for (changes, tokens), shift in zip(drawn, shifts, strict=True)
        ]
        validated = shifts.mean(1) + 0.3 * rng.normal(size=arms) / np.sqrt(seeds)
        means = [changes.sum() / tokens.sum() for changes, tokens in tests]
        chosen = int(np.argmin(means if by_test else validated))
        changes, tokens = tests[chosen]
        for place, level in enumerate((1 - 0.05 / arms, 0.95)):
            found = crossed.compare_losses(
                np.zeros(24).tolist(), changes.tolist(), tokens.tolist(),
                seed=run, level=level, resamples=1999,
            )  # fmt: skip
            assert found is not None
            if place == 0:
                found = replace(found, p_value=min(1.0, found.p_value * arms))
            count[place] += found.verdict("lower") == "improved"
    return tuple((count / runs).tolist())


def print_studies(runs: int) -> None:
    heads = "arms | seeds | seeds differ by | chosen by | improved: corrected | improved: plain"
    print(f"\n| {heads} |\n| --: | --: | --: | :-- | --: | --: |")
    for seeds, own in ((3, 0.0), (3, 0.3), (3, 1.0), (5, 1.0)):
        for by_test in (False, True):
            shares = choose_among(ARMS, seeds, own, runs, by_test=by_test)
            cells = " | ".join(f"{100 * share:.1f}" for share in shares)
            how = "test rows" if by_test else "validation"
            print(f"| {ARMS} | {seeds} | {own} | {how} | {cells} |", flush=True)


TABLES = ("loss", "answers", "cost", "seeds", "methods", "study", "judge", "pairs")

JUDGED = (
    (40, 10, 5, 0.0), (40, 10, 5, 0.2), (60, 20, 1, 0.2), (60, 20, 5, 0.0),
    (60, 20, 5, 0.2), (60, 20, 5, 0.4), (200, 20, 5, 0.2), (200, 50, 5, 0.2),
)  # fmt: skip
"""Questions, how many of them are checked by hand, criteria of each, bias of the judge."""


def correct_judge(
    said: np.ndarray, true: np.ndarray, checked: int, step: float
) -> tuple[list[bool], list[float]]:
    """Whether the intervals of the corrected mean, of the judge alone, and of the first
    ``checked`` true values alone hold the true mean of ten points; and their half-widths."""
    by_hand = true[:checked]
    found = correct_mean(
        said[checked:].tolist(), said[:checked].tolist(), by_hand.tolist(), step=step
    )
    assert found is not None
    assert found.high is not None
    halves = [found.high - found.difference] + [
        float(student.isf(0.025, len(one) - 1) * one.std(ddof=1) / np.sqrt(len(one)))
        for one in (said, by_hand)
    ]
    centres = (found.difference, said.mean(), by_hand.mean())
    return [bool(abs(a - 0.1) <= b) for a, b in zip(centres, halves, strict=True)], halves


def judge_criteria(
    questions: int, checked: int, criteria: int, bias: float, runs: int
) -> tuple[float, ...]:
    """Shares of runs whose interval holds the true gain of ten points, and mean half-widths:
    corrected, of the judge alone, and of the checked questions alone.

    Questions differ in difficulty. The judge misreads 5 % of the criteria, and takes as met, for
    the tuned model alone, so many more that it favours it by ``bias``.
    """
    rng, held, widths = np.random.default_rng([questions, checked, criteria]), [], []
    for _ in range(runs):
        hard = rng.beta(1.5, 1.5, (questions, 1))
        before = rng.random((questions, criteria)) >= hard
        after = rng.random((questions, criteria)) >= 0.8 * hard
        wrong = rng.random((2, questions, criteria)) < 0.05
        favoured = ~after & (rng.random(after.shape) < bias / 0.4)
        true = after.mean(1, dtype=float) - before.mean(1, dtype=float)
        said = ((after ^ wrong[0]) | favoured).mean(1) - (before ^ wrong[1]).mean(1, dtype=float)
        held_now, halves = correct_judge(said, true, checked, 1 / criteria)
        held.append(held_now)
        widths.append(halves)
    return (*np.mean(held, axis=0), *np.mean(widths, axis=0))


def print_judge(runs: int) -> None:
    heads = ("questions", "checked by hand", "criteria each", "bias (points)", "held: corrected",
             "held: judge alone", "held: checked alone", "± corrected", "± judge alone",
             "± checked alone")  # fmt: skip
    print(f"\n| {' | '.join(heads)} |\n|{' --: |' * len(heads)}")
    for questions, checked, criteria, bias in JUDGED:
        shares = judge_criteria(questions, checked, criteria, bias, runs)
        cells = " | ".join(f"{100 * one:.1f}" for one in shares)
        print(f"| {questions} | {checked} | {criteria} | {100 * bias:.0f} | {cells} |", flush=True)


COMPARED = (
    (40, 10, 0.0), (40, 10, 0.2), (60, 20, 0.0), (60, 20, 0.2), (60, 20, 0.4), (200, 30, 0.2),
)  # fmt: skip
"""Pairs, how many of them are compared by hand, bias of the judge."""
TIE, MISREAD = 0.5, 0.6


def mean_preference(better: float, spread: float = 1.0) -> float:
    """Wins minus losses where the tuned model's answers are ``better`` on average: a pair whose
    answers differ by less than ``TIE`` is a tie."""
    return float(norm.sf((TIE - better) / spread) - norm.cdf((-TIE - better) / spread))


def judge_pairs(pairs: int, checked: int, bias: float, runs: int) -> tuple[float, ...]:
    """Shares of runs whose interval holds the true wins minus losses of ten points, and mean
    half-widths: corrected, of the judge alone, and of the compared pairs alone.

    The judge sees by how much answers differ, with an error of ``MISREAD`` standard deviations and
    a shift towards the tuned model that favours it by ``bias``.
    """
    rng, spread = np.random.default_rng([pairs, checked]), np.hypot(1, MISREAD)
    better = brentq(lambda one: mean_preference(one) - 0.1, -5, 5)
    shift = brentq(lambda one: mean_preference(better + one, spread) - 0.1 - bias, -5, 5)
    held, widths = [], []
    for _ in range(runs):
        differs = better + rng.normal(size=pairs)
        seen = differs + shift + MISREAD * rng.normal(size=pairs)
        true, said = (np.where(abs(one) > TIE, np.sign(one), 0.0) for one in (differs, seen))
        held_now, halves = correct_judge(said, true, checked, ONE_ERROR)
        held.append(held_now)
        widths.append(halves)
    return (*np.mean(held, axis=0), *np.mean(widths, axis=0))


def print_pairs(runs: int) -> None:
    heads = ("pairs", "compared by hand", "bias (points)", "held: corrected", "held: judge alone",
             "held: compared alone", "± corrected", "± judge alone",
             "± compared alone")  # fmt: skip
    print(f"\n| {' | '.join(heads)} |\n|{' --: |' * len(heads)}")
    for pairs, checked, bias in COMPARED:
        cells = " | ".join(f"{100 * one:.1f}" for one in judge_pairs(pairs, checked, bias, runs))
        print(f"| {pairs} | {checked} | {100 * bias:.0f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--rows", type=int, nargs="*", default=[*ROWS, 1_000])
    parser.add_argument("--only", choices=TABLES)
    given = parser.parse_args()
    if given.only in (None, "loss"):
        print_losses(given.runs, given.rows)
    if given.only in (None, "answers"):
        print_answers(given.runs, given.rows)
    if given.only in (None, "cost"):
        print_cost(given.runs)
    if given.only in (None, "seeds"):
        print_seeds(given.runs)
    if given.only in (None, "methods"):
        print_methods(given.runs)
    if given.only in (None, "study"):
        print_studies(given.runs)
    if given.only in (None, "judge"):
        print_judge(given.runs)
    if given.only in (None, "pairs"):
        print_pairs(given.runs)


def print_losses(runs: int, rows: list[int]) -> None:
    print(f"| rows | changes | {' | '.join(HEADINGS)} | detectable is found |")
    print(f"| --: | :-- |{' --: |' * (len(HEADINGS) + 1)}")
    for n in (n for n in ROWS if n in rows):
        for kind in CHANGES:
            shares = without_effect(kind, n, runs)
            cells = [f"{100 * shares[name]:.1f}" for name in HEADINGS]
            print(f"| {n} | {kind} | {' | '.join(cells)} | {100 * found_loss(kind, n, runs):.0f} |")


def print_answers(runs: int, rows: list[int]) -> None:
    print("\n| questions | answers that change | falsely improved | detectable is found |")
    print("| --: | --: | --: | --: |")
    for n, churn in (one for one in ANSWERS if one[0] in rows):
        false, found = judge_answers(n, churn, runs)
        print(f"| {n} | {churn:.0%} | {100 * false:.1f} | {100 * found:.0f} |")


if __name__ == "__main__":
    main()
