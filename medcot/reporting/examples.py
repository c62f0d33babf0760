"""Selects the qualitative examples: single rows before and after, with their reference."""

from __future__ import annotations

from collections.abc import Sequence

from medcot.evaluation.interface import EvaluationSuite, ScoredRow
from medcot.reporting.schema import (
    Answer,
    ChangedList,
    ChangedQuestion,
    ChangedQuestions,
    ChangedRow,
    ClaimFindings,
    FixedQuestion,
    LostAbility,
    Passed,
)

SHOWN_ROWS = 5
Pairs = Sequence[tuple[ScoredRow, ScoredRow]]
"""The same row before and after."""


def select_rows(
    pairs: Pairs, suite: EvaluationSuite
) -> tuple[tuple[ChangedRow, ...], tuple[ChangedRow, ...]]:
    """Select the rows whose loss fell most and those whose loss rose most.

    Rows answered in full come first, because a reader can compare their answers.
    """
    cases = {case.id: case for case in suite.cases}
    rows: list[ChangedRow] = []
    for before, after in pairs:
        if before.kind != "case" or before.id not in cases:
            continue
        if before.nll is None or after.nll is None:
            continue
        case = cases[before.id]
        rows.append(
            ChangedRow(
                id=case.id,
                question=case.question,
                reference=case.reference or case.response,
                nll_before=before.nll,
                nll_after=after.nll,
                difference=after.nll - before.nll,
                before=_answer(before),
                after=_answer(after),
            )
        )
    fell = sorted((row for row in rows if row.difference < 0), key=lambda row: row.difference)
    rose = sorted((row for row in rows if row.difference > 0), key=lambda row: -row.difference)
    return _readable_first(fell), _readable_first(rose)


def select_changed_questions(pairs: Pairs, suite: EvaluationSuite) -> ChangedQuestions:
    """Select the questions that became right and those that became wrong."""
    asked = {(name, one.id): one for name, all_of in suite.questions.items() for one in all_of}
    right: list[ChangedQuestion] = []
    wrong: list[ChangedQuestion] = []
    for before, after in pairs:
        question = asked.get((before.set, before.id)) if before.kind == "mcq" else None
        if question is None or bool(before.correct) == bool(after.correct):
            continue
        (right if after.correct else wrong).append(
            ChangedQuestion(
                set=before.set,
                id=question.id,
                question=question.question,
                reference=f"{question.answer}. {question.options[question.answer]}",
                before=before.choice,
                after=after.choice,
            )
        )
    return ChangedQuestions(
        ChangedList(len(right), tuple(right[:SHOWN_ROWS])),
        ChangedList(len(wrong), tuple(wrong[:SHOWN_ROWS])),
    )


def select_lost_abilities(pairs: Pairs, suite: EvaluationSuite) -> tuple[LostAbility, ...]:
    """Select the general items that passed before and fail after, all of them."""
    asked = {item.id: item for item in suite.abilities}
    return tuple(
        LostAbility(
            before.set, before.id, asked[before.id].prompt, before.answer or "", after.answer or ""
        )
        for before, after in pairs
        if before.kind == "ability" and before.id in asked and before.correct and not after.correct
    )


def compare_fixed_question(pairs: Pairs, suite: EvaluationSuite) -> FixedQuestion | None:
    """Set the answers to the fixed question side by side; None if it was not asked."""
    case = suite.fixed
    pair = next((pair for pair in pairs if pair[0].kind == "fixed"), None)
    if case is None or pair is None:
        return None
    before, after = pair
    return FixedQuestion(
        question=case.question,
        reference=case.reference or case.response,
        before=_answer(before),
        after=_answer(after),
        claims=ClaimFindings(before.claims, after.claims),
        passed=Passed(before.correct, after.correct),
    )


def _readable_first(rows: list[ChangedRow]) -> tuple[ChangedRow, ...]:
    return tuple(sorted(rows, key=lambda row: row.after is None)[:SHOWN_ROWS])


def _answer(row: ScoredRow) -> Answer | None:
    if row.output is None:
        return None
    return Answer(
        thought=row.thought or "",
        answer=row.answer or "",
        closed=row.closed is not False,
        finished=bool(row.finished),
        tokens=row.tokens or 0,
    )
