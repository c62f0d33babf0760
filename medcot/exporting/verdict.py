"""Pairs what an export said with what the run's tuned model said, and reaches a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from medcot.catalog import Message
from medcot.exporting.formats import Tolerance
from medcot.exporting.measure import GreedyAnswer, Measured
from medcot.exporting.proof_set import ProofQuestion, ProofSet
from medcot.stats.paired import PairedDifference, compare_means

Outcome = Literal["same", "changed", "broken", "unproved"]

ENDLESS = 2
"""With this many answers that ended in the run and none that ends in the export, it is broken."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A greedy answer of the run and of the export; ``same_characters`` counts
    those up to the first difference."""

    id: str
    run: str
    export: str
    identical: bool
    same_characters: int
    run_finished: bool
    export_finished: bool


@dataclass(frozen=True, slots=True)
class RowPair:
    """A test row's loss in the run and in the export, in nats per token."""

    id: str
    run: float
    export: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an export is found to be, against its run.

    ``findings`` name what is wrong and are empty unless ``outcome`` is ``broken``. ``loss`` is the
    export's minus the run's, in nats per completion token.
    """

    outcome: Outcome
    sentence: Message
    findings: tuple[Message, ...] = ()
    loss: PairedDifference | None = None
    tolerance: Tolerance | None = None
    rows: tuple[RowPair, ...] = ()
    answers: tuple[AnswerPair, ...] = ()
    program: str = ""
    computed_in: str = ""


def compare(
    name: str,
    asked: ProofSet,
    measured: Measured | None,
    findings: Sequence[Message],
    tolerance: Tolerance,
    decode: Any,
    seed: int = 0,
) -> Comparison:
    """Compare an export called ``name`` with its run.

    Args:
        measured: None where the export could not be loaded; ``findings`` then say why.
        findings: What differs without running the model.
        decode: Turns token ids into the text that the run keeps of an answer.
    """
    found = list(findings)
    if measured is None:
        return _broken(name, found)
    if measured.missing:
        values = {"n": len(measured.missing), "name": measured.missing[0]}
        found.append(Message("proof_weights_missing", values))
    answers = tuple(
        _pair_answer(question, answer, decode)
        for question, answer in zip(asked.questions, measured.answers, strict=True)
    )
    tokens = [len(row.completion_ids) for row in asked.rows]
    rows = tuple(
        RowPair(row.id, row.nll_sum / n, loss / n)
        for row, loss, n in zip(asked.rows, measured.losses, tokens, strict=True)
    )
    facts: dict[str, Any] = {
        "tolerance": tolerance, "rows": rows, "answers": answers,
        "program": measured.program, "computed_in": measured.computed_in,
    }  # fmt: skip
    if not all(map(isfinite, measured.losses)):
        return _broken(name, [*found, Message("proof_loss_not_finite")], **facts)
    before = [row.nll_sum for row in asked.rows]
    loss = compare_means(before, list(measured.losses), tokens, seed=seed)
    assert loss is not None
    if abs(loss.difference) > tolerance.limit:
        by = {"by": f"{loss.difference:+.3f}", "limit": f"{tolerance.limit:g}"}
        found.append(Message("proof_loss_off", by))
    ended = [one for one in answers if one.run_finished]
    if len(ended) >= ENDLESS and not any(one.export_finished for one in ended):
        found.append(Message("proof_endless", {"n": len(ended)}))
    if found:
        return _broken(name, found, loss=loss, **facts)
    outcome: Outcome = "same" if abs(loss.difference) <= tolerance.same else "changed"
    return Comparison(outcome, _sentence(name, outcome, loss), loss=loss, **facts)


def _sentence(name: str, outcome: Outcome, loss: PairedDifference) -> Message:
    # Rounded first: a difference of rounding is no "-0.0000".
    by = {"format": name, "by": f"{round(loss.difference, 4) + 0.0:+.4f}", "n": loss.n}
    if outcome == "same":
        return Message("proof_same", by)
    span: str | Message = ""
    if loss.low is not None and loss.high is not None:
        span = Message("proof_span", {"low": f"{loss.low:+.4f}", "high": f"{loss.high:+.4f}"})
    word = {"worse": "proof_worse", "improved": "proof_better"}.get(loss.verdict("lower"))
    direction = Message(word or "proof_unsure")
    return Message("proof_changed", {**by, "span": span, "direction": direction})


def _broken(name: str, findings: Sequence[Message], **facts: Any) -> Comparison:
    sentence = Message("proof_broken", {"format": name, "first": findings[0]})
    return Comparison("broken", sentence, tuple(findings), **facts)


def _pair_answer(question: ProofQuestion, answer: GreedyAnswer, decode: Any) -> AnswerPair:
    said = decode(answer.ids)
    same = next(
        (n for n, (a, b) in enumerate(zip(question.output, said, strict=False)) if a != b),
        min(len(question.output), len(said)),
    )
    return AnswerPair(
        id=question.id,
        run=question.output,
        export=said,
        identical=question.output == said,
        same_characters=same,
        run_finished=question.finished,
        export_finished=answer.finished,
    )
