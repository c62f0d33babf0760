"""Compares several trainings of one recipe with the model that all of them began with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from medcot.errors import InputError
from medcot.evaluation.interface import EvaluationSuite, RowKey, ScoredRow
from medcot.evaluation.suite import is_counted
from medcot.reporting.schema import SeedComparison, SeedOutcome, Verdicts
from medcot.stats import crossed, paired
from medcot.stats.paired import PairedDifference, Verdict

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SeedRows:
    """The rows of one training after it. ``number`` counts the trainings from 1."""

    number: int
    seed: int
    kept: bool
    validation_loss: float | None
    rows: Sequence[ScoredRow]


def compare_seeds(
    before: Sequence[ScoredRow], seeds: Sequence[SeedRows], suite: EvaluationSuite, seed: int
) -> SeedComparison:
    """Compare each training with ``before``, and all of them together.

    Raises:
        InputError: A training lacks some of the rows.
    """
    after = [{row.row_key: row for row in one.rows} for one in seeds]
    cases = [row for row in before if row.kind == "case"]
    asked = [row for row in before if row.kind == "mcq" and row.metric is None]
    asked = [row for row in asked if is_counted(row, suite) and row.set in suite.questions]
    losses = [_side(one, after, cases, lambda row: row.nll_sum or 0.0) for one in seeds]
    right = [_side(one, after, asked, lambda row: bool(row.correct)) for one in seeds]
    base = [row.nll_sum or 0.0 for row in cases]
    tokens = [float(row.completion_tokens or 0) for row in cases]
    correct = [bool(row.correct) for row in asked]
    runs: list[SeedOutcome] = []
    for one, loss, answers in zip(seeds, losses, right, strict=True):
        nll = paired.compare_means(base, loss, tokens, seed=seed)
        mcq = paired.compare_rates(correct, answers)
        runs.append(
            SeedOutcome(
                one.number,
                one.seed,
                one.kept,
                one.validation_loss,
                nll,
                _verdict(nll, "lower"),
                mcq,
                _verdict(mcq, "higher") if mcq else None,
            )
        )
    return SeedComparison(
        tuple(runs),
        crossed.compare_losses(base, losses, tokens, seed=seed),
        crossed.compare_rates(correct, right, seed=seed),
    )


def judge_recipe(several: SeedComparison, kept: Verdicts) -> Verdicts:
    """Return the verdicts with those of the recipe in place of the ones of the kept adapter."""
    verdict = replace(kept, nll=_verdict(several.nll, "lower"))
    return replace(verdict, mcq=_verdict(several.mcq, "higher")) if several.mcq else verdict


def _verdict(found: PairedDifference | None, better: Literal["lower", "higher"]) -> Verdict:
    return found.verdict(better) if found else "no evidence"


def _side(
    one: SeedRows,
    after: Sequence[Mapping[RowKey, ScoredRow]],
    rows: Sequence[ScoredRow],
    read: Callable[[ScoredRow], T],
) -> list[T]:
    found = after[one.number - 1]
    missing = sum(row.row_key not in found for row in rows)
    if missing:
        raise InputError(
            f"seeds/{one.number}/evaluation/after.jsonl",
            f"{missing} of the rows to compare are missing",
            "score them with medcot evaluate --run",
        )
    return [read(found[row.row_key]) for row in rows]
