"""Records shared by the evaluation modules: the suite, the scored row, the model interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal

from medcot.data.prompts import ChatTemplate
from medcot.errors import InputError, one_line
from medcot.evaluation.abilities import Ability
from medcot.evaluation.rubric import ClaimFinding
from medcot.records import Case, Generate, OptionScore, Question, Score, Style

Method = Literal["likelihood", "generate"]
Kind = Literal["case", "fixed", "mcq", "ability"]

CASES, FIXED, ABILITIES = "test rows", "fixed question", "general items"
"""Set names, in reports, of rows that belong to no question set."""

BY_LM_EVAL = "lm_eval/"
"""Name prefix for a local question set scored by lm-evaluation-harness."""

RowKey = tuple[Kind, str, str]
"""Kind, set and id: identifies one row of an evaluation."""

ROW_SCHEMA_VERSION = 1
"""Version of :class:`ScoredRow` on disk. Rows without one were written before versions existed."""


@dataclass(frozen=True, slots=True)
class ThoughtLosses:
    """The loss of a row's reference answer after four thoughts, in nats per token of the answer.

    ``none`` is an empty thought, ``own`` what the model generated, ``reference`` the row's own of
    the data, ``wrong`` that of another row.
    """

    none: float
    own: float
    reference: float
    wrong: float

    @property
    def gain(self) -> float:
        """Return how much likelier the model's own thought makes the right answer."""
        return self.none - self.own

    @property
    def harm(self) -> float:
        """Return how much less likely a wrong thought makes the right answer than a right one."""
        return self.wrong - self.reference


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One line of ``evaluation/*.jsonl``. A field that does not apply to the row is None.

    ``set`` is the question set's short name, the kind of an ``ability``, "" for a ``case`` and the
    ``fixed`` question. ``nll`` is in nats per token, ``nll_sum`` in nats over ``completion_tokens``
    tokens of the reference; ``tokens`` counts the generated ones, of thought and answer together.
    ``finished`` is False where generation stopped at the token limit; ``repeats`` is True where the
    output loops. Only multiple-choice rows have ``choice`` (the letter read from the answer) to
    ``option_losses`` (nats by letter). ``letters`` are those that stood before the likeliest
    option, one for each order of the options; ``choice`` rests on all orders. ``metric``
    (lm_eval's), ``task`` and ``of`` (the task's number of rows) are set on rows that lm-evaluation-
    harness scored. ``thought_losses`` are set on the rows that test whether the thought is used.
    """

    kind: Kind
    set: str
    id: str
    prompt: str
    output: str | None = None
    thought: str | None = None
    answer: str | None = None
    correct: bool | None = None
    nll: float | None = None
    nll_sum: float | None = None
    completion_tokens: int | None = None
    tokens: int | None = None
    thought_tokens: int | None = None
    answer_tokens: int | None = None
    closed: bool | None = None
    finished: bool | None = None
    repeats: bool | None = None
    language_match: bool | None = None
    claims: tuple[ClaimFinding, ...] = ()
    choice: str | None = None
    key: str | None = None
    unparsed: bool | None = None
    unfinished: bool | None = None
    option_losses: Mapping[str, float] | None = None
    letters: tuple[str, ...] = ()
    thought_losses: ThoughtLosses | None = None
    metric: str | None = None
    task: str | None = None
    of: int | None = None
    schema_version: int = ROW_SCHEMA_VERSION

    @property
    def row_key(self) -> RowKey:
        """Identifies the row within an evaluation."""
        return (self.kind, self.set, self.id)

    @property
    def correct_as_given(self) -> bool:
        """Tell whether the answer is right with the options in their given order alone."""
        return self.letters[0] == self.key if self.letters else bool(self.correct)


def without_answer(row: ScoredRow) -> ScoredRow:
    """Return a test row with its loss alone; other rows stay as they are."""
    if row.kind != "case":
        return row
    return ScoredRow(
        row.kind, row.set, row.id, row.prompt,
        nll=row.nll, nll_sum=row.nll_sum, completion_tokens=row.completion_tokens,
    )  # fmt: skip


def row_to_json(row: ScoredRow) -> dict[str, Any]:
    """Convert a row to the object that is one line of ``evaluation/*.jsonl``."""
    return asdict(row)


def rows_from_json(lines: Iterable[Mapping[str, Any]], where: str) -> list[ScoredRow]:
    """Read the rows of ``where``, a file that this or an earlier version wrote.

    Raises:
        InputError: a row lacks a field, has one of a wrong type, or is of a later version.
    """
    return [_row_from_json(line, f"{where}, row {number}") for number, line in enumerate(lines, 1)]


def _row_from_json(line: Mapping[str, Any], where: str) -> ScoredRow:
    from pydantic import ValidationError

    version = line.get("schema_version", ROW_SCHEMA_VERSION)
    if version > ROW_SCHEMA_VERSION:
        needs = f"expected {ROW_SCHEMA_VERSION} or lower: update medcot, which wrote it"
        raise InputError(where, f"found schema_version {version}", needs)
    try:
        return _row_adapter().validate_python(_upgraded(line))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "row"
        raise InputError(
            where, f"{field}: {one_line(first['msg'])}", "expected a row as medcot writes it"
        ) from None


def _upgraded(line: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a row without ``schema_version`` to the current version."""
    key = line.get("key")
    # lm_eval's targets were once stored as they came: as numbers, letters or lists.
    return {**line, "key": None if key is None else str(key), "schema_version": ROW_SCHEMA_VERSION}


@cache
def _row_adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(ScoredRow)


@dataclass(frozen=True)
class ModelTools:
    """A model as evaluation sees it.

    ``answers_at_once`` is the number of prompts generated, and then saved, as one batch.
    """

    generate: Generate
    score: Score
    score_options: OptionScore
    chat: ChatTemplate | None = None
    answers_at_once: int = 16


@dataclass(frozen=True)
class EvaluationSuite:
    """Everything that is asked of a model, the same before and after training.

    ``cases`` are the test rows scored by loss; ``generated``, the first of them, are also answered
    in full. ``fixed`` is one question with a reference and key facts. ``questions`` maps the short
    name of a multiple-choice set to its questions; their likelihoods are averaged over
    ``mcq_orders`` cyclic orders of the options, 0 meaning all. ``abilities`` are general items,
    which show what the training cost. ``thinks`` tells whether thoughts are asked for.
    ``wrong_thoughts`` maps a test row's id to the thought of another, for the rows that test
    whether the thought is used. With ``answer_alone`` a test row's loss is that of its answer after
    the model's own thought.
    """

    cases: tuple[Case, ...]
    generated: tuple[Case, ...]
    fixed: Case | None
    questions: Mapping[str, tuple[Question, ...]]
    style: Style
    mcq_method: Method
    mcq_orders: int = 1
    abilities: tuple[Ability, ...] = ()
    thinks: bool = True
    wrong_thoughts: Mapping[str, str] = field(default_factory=dict[str, str])
    answer_alone: bool = False


AnswerBatches = Callable[[EvaluationSuite, ModelTools, Sequence[int]], Iterable[list[ScoredRow]]]
"""Scores the batches of a suite at the given indices; yields each batch's rows, in that order."""
