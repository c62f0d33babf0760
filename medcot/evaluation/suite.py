"""One evaluation suite, run before and after training: what is asked, the rows, their summary.

A model is known only by three callables, so the same code evaluates a network, a server or a
table. Each batch of rows is saved as soon as it is scored; saved rows are not scored again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import cast

from medcot.config.schema import RunConfig
from medcot.data.mcq_catalog import label_sets
from medcot.evaluation.abilities import choose_abilities, load_abilities
from medcot.evaluation.batching import answer_batches, make_batches
from medcot.evaluation.interface import (
    ABILITIES,
    BY_LM_EVAL,
    CASES,
    FIXED,
    AnswerBatches,
    EvaluationSuite,
    ModelTools,
    RowKey,
    ScoredRow,
)
from medcot.evaluation.rubric import ClaimFinding
from medcot.records import Case, Question
from medcot.stats.paired import rate_interval


@dataclass(frozen=True, slots=True)
class SetAccuracy:
    """Right answers to a set of items, with Wilson's 95 % interval; None without items.

    ``unparsed`` answers state no clear letter, ``unfinished`` ones were truncated: both are wrong.
    """

    accuracy: float | None
    low: float | None
    high: float | None
    n: int
    unparsed: int = 0
    unfinished: int = 0

    @property
    def unread(self) -> float:
        """Return the share of answers that state no clear letter."""
        return self.unparsed / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class Accuracy(SetAccuracy):
    """Right answers to all questions together, each counted once, and to each set."""

    sets: Mapping[str, SetAccuracy] = field(default_factory=dict[str, SetAccuracy])


@dataclass(frozen=True, slots=True)
class Summary:
    """What one side of a report, before or after, adds up to. None: nothing was asked for it.

    ``nll`` is the mean loss in nats per completion token over ``rows`` test rows. The rates and
    the mean numbers of tokens are over the ``answered_rows``; ``truncated`` counts outputs that
    reached the token limit, of ``generated`` outputs in all. ``thought_gain`` and ``thought_harm``
    are the means of :class:`ThoughtLosses`' ``gain`` and ``harm``, in nats per token;
    ``claims_rate`` is the share of answers that state every claim, of rows that have claims.
    """

    nll: float | None
    rows: int
    answered_rows: int
    closed_rate: float | None
    finished_rate: float | None
    repetition_rate: float | None
    language_match_rate: float | None
    answer_tokens: float | None
    thought_tokens: float | None
    truncated: int
    generated: int
    claims: tuple[ClaimFinding, ...] = ()
    mcq: Accuracy | None = None
    abilities: Accuracy | None = None
    thought_gain: float | None = None
    thought_harm: float | None = None
    claims_rate: float | None = None

    def value(self, measure: str) -> float | None:
        """Return the value of ``measure``, a field's name; of right answers, the accuracy."""
        if measure in ("mcq", "abilities"):
            found = cast("Accuracy | None", getattr(self, measure))
            return found and found.accuracy
        return cast("float | None", getattr(self, measure))


def make_suite(
    config: RunConfig,
    cases: Sequence[Case],
    fixed: Case | None,
    questions: Mapping[str, Sequence[Question]],
) -> EvaluationSuite:
    """Make the suite that ``config`` asks for from test rows, question sets and bundled items.

    If fewer questions are asked than a set has, they are chosen by a hash of their id, so that
    a larger sample contains every smaller one.
    """
    seed = config.seed if config.choice_seed is None else config.choice_seed
    kept = tuple(cases)[: config.test_samples]
    labels = label_sets(questions, taken=(CASES, FIXED, ABILITIES))
    return EvaluationSuite(
        cases=kept,
        generated=kept[: config.generate_samples],
        fixed=fixed if config.thinks or fixed is None else replace(fixed, thought=""),
        questions={
            labels[name]: _choose(asked, config.mcq_samples, seed)
            for name, asked in questions.items()
            if asked
        },
        style=config.style,
        mcq_method=config.mcq_method,
        mcq_orders=config.mcq_orders,
        wrong_thoughts=_pair_thoughts(kept[: min(config.generate_samples, config.thought_samples)]),
        abilities=choose_abilities(load_abilities(config.language), asked, seed)
        if (asked := config.ability_samples)
        else (),
        thinks=config.thinks,
        answer_alone=config.test_loss == "answer",
    )


def _pair_thoughts(cases: Sequence[Case]) -> dict[str, str]:
    """Give each case that has a thought that of the next one, the last case that of the first."""
    thinking = [case for case in cases if case.thought]
    if len(thinking) < 2:
        return {}
    turned = [*thinking[1:], thinking[0]]
    return {case.id: other.thought for case, other in zip(thinking, turned, strict=True)}


def evaluate(
    suite: EvaluationSuite,
    tools: ModelTools,
    done: Iterable[ScoredRow],
    save: Callable[[ScoredRow], None],
    on_progress: Callable[[int, int], None] | None = None,
    answer: AnswerBatches = answer_batches,
) -> list[ScoredRow]:
    """Score everything that is not in ``done``; return one row per item, in the suite's order.

    Each new row is passed to ``save`` when its batch is done. Batches hold items of similar length,
    which wastes little on padding, and are always the same (a half-saved one is scored again), so
    that a resumed evaluation gives exactly the rows of an uninterrupted one. ``answer`` scores the
    batches, in this process or in several.
    """
    order = list(_list_keys(suite))
    rows = {row.row_key: row for row in done if row.row_key in set(order)}
    missing = [
        [key for key in batch.keys if key not in rows] for batch in make_batches(suite, tools)
    ]
    open_batches = [index for index, keys in enumerate(missing) if keys]
    if on_progress:
        on_progress(len(rows), len(order))
    answered = answer(suite, tools, open_batches)
    for index, batch_rows in zip(open_batches, answered, strict=True):
        for row in batch_rows:
            if row.row_key in missing[index]:
                rows[row.row_key] = row
                save(row)
        if on_progress:
            on_progress(len(rows), len(order))
    return [rows[key] for key in order]


def summarise(rows: Sequence[ScoredRow], suite: EvaluationSuite) -> Summary:
    """Sum up one side of a report, before or after."""
    cases = [row for row in rows if row.kind == "case"]
    answered = [row for row in cases if row.output is not None]
    fixed = next((row for row in rows if row.kind == "fixed"), None)
    spoken = [row for row in rows if row.output is not None]
    return Summary(
        nll=_ratio((row.nll_sum for row in cases), (row.completion_tokens for row in cases)),
        rows=len(cases),
        answered_rows=len(answered),
        closed_rate=_mean(row.closed for row in answered),
        finished_rate=_mean(row.finished for row in answered),
        repetition_rate=_mean(row.repeats for row in answered),
        language_match_rate=_mean(row.language_match for row in answered),
        answer_tokens=_mean(row.answer_tokens for row in answered),
        thought_tokens=_mean(row.thought_tokens for row in answered),
        truncated=sum(not row.finished for row in spoken),
        generated=len(spoken),
        claims=fixed.claims if fixed else (),
        mcq=_sum_up_sets(rows, suite),
        abilities=_sum_up_abilities(rows),
        claims_rate=_mean(row.correct for row in answered if row.claims),
        thought_gain=_mean(row.thought_losses.gain for row in cases if row.thought_losses),
        thought_harm=_mean(row.thought_losses.harm for row in cases if row.thought_losses),
    )


def list_sets(rows: Sequence[ScoredRow], suite: EvaluationSuite) -> list[str]:
    """List the multiple-choice sets by name: those of the suite, then those scored elsewhere."""
    found = (row.set for row in rows if row.kind == "mcq")
    return list(dict.fromkeys([*suite.questions, *found]))


def is_counted(row: ScoredRow, suite: EvaluationSuite) -> bool:
    """Tell whether a row counts among all questions.

    A question of the suite that lm_eval answered too counts once, as the suite's.
    """
    return not (
        row.set.startswith(BY_LM_EVAL) and row.set.removeprefix(BY_LM_EVAL) in suite.questions
    )


def order_rows(rows: Iterable[ScoredRow], suite: EvaluationSuite) -> tuple[list[ScoredRow], int]:
    """Sort rows into the suite's order, lm_eval's after them; also count the missing ones.

    Rows of sets that are no longer asked are left out.
    """
    found = {row.row_key: row for row in rows}
    asked = list(_list_keys(suite))
    known = [found.pop(key) for key in asked if key in found]
    others = [row for row in found.values() if row.metric is not None]
    return [*known, *others], len(asked) - len(known)


def _choose(questions: Sequence[Question], count: int, seed: int) -> tuple[Question, ...]:
    if not count or count >= len(questions):
        return tuple(questions)
    place = {
        index: hashlib.sha256(f"{seed}:{question.id}".encode()).digest()
        for index, question in enumerate(questions)
    }
    chosen = sorted(sorted(place, key=place.__getitem__)[:count])
    return tuple(questions[index] for index in chosen)


def _list_keys(suite: EvaluationSuite) -> Iterator[RowKey]:
    for case in suite.cases:
        yield ("case", "", case.id)
    if suite.fixed:
        yield ("fixed", "", suite.fixed.id)
    for name, asked in suite.questions.items():
        for question in asked:
            yield ("mcq", name, question.id)
    for item in suite.abilities:
        yield ("ability", item.kind, item.id)


def _sum_up_sets(rows: Sequence[ScoredRow], suite: EvaluationSuite) -> Accuracy | None:
    names = list_sets(rows, suite)
    if not names:
        return None
    asked = [row for row in rows if row.kind == "mcq"]
    together = _count_right([row for row in asked if is_counted(row, suite)])
    sets = {name: _count_right([row for row in asked if row.set == name]) for name in names}
    return Accuracy(*astuple(together), sets=sets)


def _sum_up_abilities(rows: Sequence[ScoredRow]) -> Accuracy | None:
    items = [row for row in rows if row.kind == "ability"]
    if not items:
        return None
    kinds = dict.fromkeys(row.set for row in items)
    sets = {kind: _count_right([row for row in items if row.set == kind]) for kind in kinds}
    return Accuracy(*astuple(_count_right(items)), sets=sets)


def _count_right(rows: Sequence[ScoredRow]) -> SetAccuracy:
    right = sum(bool(row.correct) for row in rows)
    low, high = rate_interval(right, len(rows)) or (None, None)
    return SetAccuracy(
        accuracy=right / len(rows) if rows else None,
        low=low,
        high=high,
        n=len(rows),
        unparsed=sum(bool(row.unparsed) for row in rows),
        unfinished=sum(bool(row.unfinished) for row in rows),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    if all(value is None for value in found):
        return None  # no rows, or nothing that this measure applies to
    return sum(value or 0 for value in found) / len(found)


def _ratio(above: Iterable[float | None], below: Iterable[float | None]) -> float | None:
    total = sum(value or 0 for value in below)
    return sum(value or 0 for value in above) / total if total else None
