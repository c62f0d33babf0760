"""Run directories with scored rows, for everything that compares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medcot.config.presets import make_config
from medcot.evaluation.interface import ScoredRow, row_to_json
from medcot.runs.directory import RunDirectory


def case(number: int, nll: float, **changes: object) -> ScoredRow:
    """A test row of 10 tokens, answered in full."""
    row = ScoredRow(
        kind="case", set="", id=f"case-{number}", prompt=f"Question {number}<think>\n",
        output="x", thought="x", answer="x", nll=nll, nll_sum=10 * nll, completion_tokens=10,
        tokens=20, thought_tokens=12, answer_tokens=8, closed=True, finished=True, repeats=False,
        language_match=True,
    )  # fmt: skip
    return replace(row, **changes)


def choice(number: int, correct: bool, **changes: object) -> ScoredRow:
    """A question with options."""
    row = ScoredRow(
        kind="mcq", set="sample", id=f"q-{number}", prompt=f"Choose {number}", key="A",
        correct=correct,
    )  # fmt: skip
    return replace(row, **changes)


CASES = [case(n, 2.0 + n / 10) for n in range(12)]
LOWER = [replace(row, nll=row.nll - 0.3, nll_sum=row.nll_sum - 3.0 - n / 20)
         for n, row in enumerate(CASES)]  # fmt: skip
"""The same rows, on which a better model has a loss lower by 0.3 to 0.36."""


def make_scored_run(
    path: Path, after: Iterable[ScoredRow], before: Iterable[ScoredRow] = (), **options: object
) -> RunDirectory:
    """A run in ``path`` with these rows."""
    directory = RunDirectory(path)
    directory.create(make_config("demo", {"mcq": (), **options}))
    for phase, rows in (("before", before), ("after", after)):
        for row in rows:
            directory.append(directory.evaluation(phase), row_to_json(row))
    return directory
