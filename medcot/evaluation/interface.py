"""What an evaluation asks, and how it knows a model: the records that its modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medcot.data.prompts import ChatTemplate
from medcot.records import Case, Generate, OptionScore, Question, Score, Style

Method = Literal["likelihood", "generate"]

CASES, FIXED = "test rows", "fixed question"
"""What the rows that are no question set are called beside the sets' names."""

BY_LM_EVAL = "lm_eval/"
"""Before the name of a local set: its questions, as lm-evaluation-harness answered them."""

Key = tuple[str, str, str]
"""Kind, set and id: what names one row of an evaluation."""

Row = dict[str, Any]
"""One line of ``evaluation/*.jsonl``."""


@dataclass(frozen=True)
class ModelTools:
    """A model as evaluation sees it. It answers ``answers_at_once`` prompts in one batch: so many
    are handed over at a time, saved together, and lost at most when killed."""

    generate: Generate
    score: Score
    score_options: OptionScore
    chat: ChatTemplate | None = None
    answers_at_once: int = 16


@dataclass(frozen=True)
class Examination:
    """What is asked, the same before and after.

    ``cases`` are the test rows scored by loss; ``generated``, the first of them, are answered in
    full too. ``fixed`` is one question with a reference and claims. ``questions`` are by the set's
    short name.
    """

    cases: tuple[Case, ...]
    generated: tuple[Case, ...]
    fixed: Case | None
    questions: Mapping[str, tuple[Question, ...]]
    style: Style
    mcq_method: Method


Ask = Callable[[Examination, ModelTools, Sequence[int]], Iterable[list[Row]]]
"""From the places of some groups to their rows, group by group in this order."""
