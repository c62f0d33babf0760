"""Splits an evaluation into batches of similar length.

A batch is the unit of saving and of distribution across processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from medcot.data import prompts
from medcot.evaluation.interface import EvaluationSuite, ModelTools, RowKey, ScoredRow
from medcot.evaluation.scorers import (
    CaseOfKind,
    score_abilities,
    score_by_likelihood,
    score_by_reasoning,
    score_cases,
)

Item = TypeVar("Item")

SCORED_AT_ONCE = 32
"""Rows per batch when nothing is generated; a kill loses at most one batch."""


@dataclass(frozen=True)
class Batch:
    """Items that are scored and saved together: the keys of their rows, and how to score them."""

    keys: tuple[RowKey, ...]
    score: Callable[[], Iterator[ScoredRow]]


def answer_batches(
    suite: EvaluationSuite, tools: ModelTools, wanted: Sequence[int]
) -> Iterator[list[ScoredRow]]:
    """Score the batches at the indices ``wanted`` with ``tools``, one after the other."""
    batches = make_batches(suite, tools)
    for index in wanted:
        yield list(batches[index].score())


def make_batches(suite: EvaluationSuite, tools: ModelTools) -> list[Batch]:
    """Split ``suite`` into batches. The same suite and batch size give the same batches."""
    return [
        *_case_batches(suite, tools),
        *_question_batches(suite, tools),
        *_ability_batches(suite, tools),
    ]


def _case_batches(suite: EvaluationSuite, tools: ModelTools) -> Iterator[Batch]:
    """Split the cases. The fixed one is answered with others: alone it takes as long as they do."""
    in_full = {case.id for case in suite.generated}
    full: list[CaseOfKind] = [("case", case) for case in suite.cases if case.id in in_full]
    rest: list[CaseOfKind] = [("case", case) for case in suite.cases if case.id not in in_full]
    if suite.fixed:
        full.append(("fixed", suite.fixed))
    generated = max(1, tools.answers_at_once)
    thinks = suite.answer_alone and suite.thinks
    for group, size in ((full, generated), (rest, generated if thinks else SCORED_AT_ONCE)):
        for cases in _by_length(group, _case_length, size):
            keys: list[RowKey] = [(kind, "", case.id) for kind, case in cases]
            score = partial(
                score_cases,
                cases,
                suite.style,
                tools,
                answered=group is full,
                answer_alone=suite.answer_alone,
                wrong_thoughts=suite.wrong_thoughts,
            )
            yield Batch(tuple(keys), score)


def _question_batches(suite: EvaluationSuite, tools: ModelTools) -> Iterator[Batch]:
    likely = suite.mcq_method == "likelihood"
    size = SCORED_AT_ONCE if likely else max(1, tools.answers_at_once)
    for name, asked in suite.questions.items():
        for questions in _by_length(asked, lambda one: len(prompts.choice_cue(one)), size):
            score = (
                partial(score_by_likelihood, questions, name, tools, suite.mcq_orders)
                if likely
                else partial(
                    score_by_reasoning, questions, name, suite.style, tools, thinks=suite.thinks
                )
            )
            keys: list[RowKey] = [("mcq", name, one.id) for one in questions]
            yield Batch(tuple(keys), score)


def _ability_batches(suite: EvaluationSuite, tools: ModelTools) -> Iterator[Batch]:
    size = max(1, tools.answers_at_once)
    for items in _by_length(suite.abilities, lambda one: len(one.prompt), size):
        keys: tuple[RowKey, ...] = tuple(("ability", item.kind, item.id) for item in items)
        yield Batch(keys, partial(score_abilities, items, tools))


def _by_length(
    items: Sequence[Item], length: Callable[[Item], int], size: int
) -> Iterator[list[Item]]:
    """Yield batches, the longest items first: running out of memory shows at once."""
    ordered = sorted(items, key=length, reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _case_length(of_kind: CaseOfKind) -> int:
    case = of_kind[1]
    return len(case.question) + len(case.thought) + len(case.response)
