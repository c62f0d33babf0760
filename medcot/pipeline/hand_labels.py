"""Lays out a judge's work to be checked by hand, and reads what somebody said of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from medcot.errors import InputError, one_line
from medcot.evaluation.grading import find_graded, grade_answers, list_checks, load_criteria
from medcot.evaluation.interface import ScoredRow
from medcot.evaluation.judge import GradeResult, JudgeResult
from medcot.evaluation.pair_labels import CHOICES, correct_preferences, list_pairs
from medcot.pipeline.prepare import Prepared
from medcot.runs.directory import RunDirectory

LABELS = "evaluation/judge_labels.jsonl"
"""Decisions of the judge laid out to be checked by hand: ``met`` is for the user to fill in."""

PAIRS = "evaluation/judge_pairs.jsonl"
"""Pairs of answers laid out to be compared by hand: ``better`` is for the user to fill in."""


def correct(
    judged: JudgeResult,
    prepared: Prepared,
    before: Sequence[ScoredRow],
    after: Sequence[ScoredRow],
) -> JudgeResult:
    """Lay out pairs to be compared, and correct the judge's preferences by those that were.

    Raises:
        InputError: a label is none of the words asked for.
    """
    directory, suite = prepared.directory, prepared.suite
    given = _read_labels(directory, PAIRS, "better", (*CHOICES, 1, 2), '"1", "2", "tie" or null')
    labels = {name: str(choice) for name, choice in given.items()}
    if judged.reached:
        _lay_out(directory, PAIRS, list_pairs(before, after, suite))
    return correct_preferences(judged, before, after, suite, labels)


def grade(
    prepared: Prepared, before: Sequence[ScoredRow], after: Sequence[ScoredRow], judged: Path
) -> GradeResult:
    """Have the judge grade all answers that have criteria, and lay some out to be checked.

    ``judged`` is the file of its decisions.

    Raises:
        InputError: a label is neither true nor false.
    """
    directory, config = prepared.directory, prepared.config
    sets = load_criteria(config.judge_criteria)
    labels = _read_labels(directory, LABELS, "met", (True, False), "true, false or null")
    _lay_out(directory, LABELS, list_checks(find_graded(before, after, prepared.suite, sets)))
    return grade_answers(
        before,
        after,
        prepared.suite,
        sets,
        config.judge_url,
        config.judge_model,
        known={row["contest"]: row["outcome"] for row in directory.rows(judged)},
        save=lambda name, decision: directory.append(
            judged, {"contest": name, "outcome": decision}
        ),
        labels=labels,
    )


def _read_labels(
    directory: RunDirectory, name: str, key: str, choices: Collection[Any], expected: str
) -> dict[str, Any]:
    """Return what was filled in under ``key``, by the row's id."""
    path = directory.path / name
    found: dict[str, Any] = {}
    for row in directory.rows(path):
        value = row.get(key)
        if value is None:
            continue
        # 1 equals True, and 0 False.
        if not any(value == one and type(value) is type(one) for one in choices):
            where, got = f"{path}, {one_line(row['id'])}", one_line(repr(value), 40)
            raise InputError(where, f"{key} is {got}", f"expected {expected}")
        found[row["id"]] = value
    return found


def _lay_out(directory: RunDirectory, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Append the rows that the file does not have yet."""
    path = directory.path / name
    there = {row["id"] for row in directory.rows(path)}
    for row in rows:
        if row["id"] not in there:
            directory.append(path, row)
