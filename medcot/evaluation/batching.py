"""An examination in handfuls of like length: asked together, saved together, shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from medcot.data import prompts
from medcot.evaluation.interface import Examination, Key, ModelTools, Row
from medcot.evaluation.scorers import ask_by_likelihood, ask_by_reasoning, ask_cases
from medcot.records import Case

Item = TypeVar("Item")
Group = tuple[list[tuple[Key, Any]], Callable[[list[Any]], Iterator[Row]]]

SCORED_AT_ONCE = 32
"""Rows scored by loss or likelihood between two writes, and lost at most when killed."""


def ask_groups(
    examination: Examination, tools: ModelTools, wanted: Sequence[int]
) -> Iterator[list[Row]]:
    """Have the groups at the places ``wanted`` answered by ``tools``, one after the other."""
    groups = list(groups_of(examination, tools))
    for index in wanted:
        group, answer = groups[index]
        yield list(answer([item for _, item in group]))


def groups_of(examination: Examination, tools: ModelTools) -> Iterator[Group]:
    """The items in handfuls of like length, each with the function that answers them."""
    style, in_full = examination.style, {case.id for case in examination.generated}
    at_once = max(1, tools.answers_at_once)

    def cases_of(kind: str, answered: bool) -> Callable[[list[Case]], Iterator[Row]]:
        return lambda group: ask_cases(group, kind, answered, style, tools)

    full = [case for case in examination.cases if case.id in in_full]
    rest = [case for case in examination.cases if case.id not in in_full]
    for group in _by_length(full, _case_length, at_once):
        yield [(("case", "", case.id), case) for case in group], cases_of("case", True)
    for group in _by_length(rest, _case_length, SCORED_AT_ONCE):
        yield [(("case", "", case.id), case) for case in group], cases_of("case", False)
    if fixed := examination.fixed:
        yield [(("fixed", "", fixed.id), fixed)], cases_of("fixed", True)
    likely = examination.mcq_method == "likelihood"
    for name, asked in examination.questions.items():
        size = SCORED_AT_ONCE if likely else at_once
        for group in _by_length(asked, lambda one: len(prompts.choice_cue(one)), size):
            keyed = [(("mcq", name, question.id), question) for question in group]
            if likely:
                yield keyed, lambda group, name=name: ask_by_likelihood(group, name, tools)
            else:
                yield keyed, lambda group, name=name: ask_by_reasoning(group, name, style, tools)


def _by_length(
    items: Sequence[Item], length: Callable[[Item], int], size: int
) -> Iterator[list[Item]]:
    """Longest first: what does not fit shows at once."""
    ordered = sorted(items, key=length, reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _case_length(case: Case) -> int:
    return len(case.question) + len(case.thought) + len(case.response)
