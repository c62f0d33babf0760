"""Corrects a judge's preferences by those of somebody who compared some of the pairs by hand.

A judge may favour one of the two models, in whichever order it reads them; planted pairs cannot
show that. ``evaluation/judge_pairs.jsonl`` lays out random pairs without their authors. Where they
were compared by hand, the judge's error corrects the interval of wins minus losses
(:mod:`medcot.stats.prediction_powered`), as it does for grades by criteria (:mod:`.grading`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medcot.catalog import Message
from medcot.evaluation.interface import EvaluationSuite, ScoredRow
from medcot.evaluation.judge import (
    AnswerPair,
    JudgeResult,
    add_message,
    name_pair,
    pair_answers,
)
from medcot.stats import paired
from medcot.stats.prediction_powered import FEWEST_CHECKED, correct_mean

CHOICES = ("1", "2", "tie")
"""What somebody may say of a pair: which answer is better, or neither."""
MOST_CHECKED = 30
"""Pairs, chosen at random, that are laid out to be compared by hand."""
ONE_ERROR = 1.0
"""How far one misread pair moves the judge's value of it: from a win to neither, or further."""

_VALUES = {"after": 1.0, "before": -1.0}


def list_pairs(
    before: Sequence[ScoredRow], after: Sequence[ScoredRow], suite: EvaluationSuite
) -> list[dict[str, Any]]:
    """List the pairs to be compared by hand: random ones, in an order that hides who answered.

    Equal answers are no pair to compare: they are a tie.
    """
    rows: list[dict[str, Any]] = []
    for one in _shuffle(pair_answers(before, after, suite))[:MOST_CHECKED]:
        if one.before == one.after:
            continue
        first, second = (one.after, one.before) if _is_turned(one) else (one.before, one.after)
        rows.append(
            {
                "id": name_pair(one),
                "question": one.question,
                "reference": one.reference,
                "answer_1": first,
                "answer_2": second,
                "better": None,
            }
        )
    return rows


def correct_preferences(
    judged: JudgeResult,
    before: Sequence[ScoredRow],
    after: Sequence[ScoredRow],
    suite: EvaluationSuite,
    labels: Mapping[str, str],
) -> JudgeResult:
    """Add the interval of wins minus losses to what the judge found, corrected by ``labels``.

    ``labels`` maps names of pairs to one of :data:`CHOICES`. A pair that is won counts 1, one that
    is lost -1, and any other 0. Without enough labels the interval leaves the judge's errors out,
    and a message says so.
    """
    pairs = _shuffle(pair_answers(before, after, suite))
    if not judged.reached or not judged.n - judged.unread:
        return judged
    said = {one.id: _VALUES.get(judged.outcomes[one.id], 0.0) for one in pairs}
    true: dict[str, float] = {}
    for one in pairs if labels else ():
        # What is compared must be a random part: the pairs up to the first that is not.
        if (by_hand := _read_label(one, labels)) is None:
            break
        true[one.id] = by_hand
    corrected = correct_mean(
        [value for id_, value in said.items() if id_ not in true],
        [said[id_] for id_ in true],
        list(true.values()),
        step=ONE_ERROR,
    )
    found = replace(
        judged,
        judged=paired.compare_means([0.0] * len(said), list(said.values())),
        checked=len(true),
        checked_agreement=_mean([float(said[id_] == value) for id_, value in true.items()]),
        bias=_mean([said[id_] - value for id_, value in true.items()]),
        corrected=corrected,
    )
    return add_message(found, *_describe(found, differ=any(p.before != p.after for p in pairs)))


def _describe(found: JudgeResult, *, differ: bool) -> Iterator[Message]:
    """Say what the judge's error makes of its preferences, or that it is not corrected."""
    if (one := found.corrected) and one.low is not None and one.high is not None:
        shares = {
            "agreement": found.checked_agreement or 0.0,
            "bias": found.bias or 0.0,
            "difference": one.difference,
            "low": max(-1.0, one.low),
            "high": min(1.0, one.high),
        }
        percent = {name: 100 * value for name, value in shares.items()}
        yield Message("pairs_corrected", {"checked": found.checked} | percent)
        return
    if (one := found.judged) and one.low is not None and one.high is not None:
        yield Message("pairs_uncorrected", {"low": 100 * one.low, "high": 100 * one.high})
    if differ:
        yield Message("pairs_check", {"checked": found.checked, "fewest": FEWEST_CHECKED})


def _read_label(one: AnswerPair, labels: Mapping[str, str]) -> float | None:
    """Return 1 if the tuned model's answer was found better, -1 if worse; None if not compared."""
    if one.before == one.after:
        return 0.0
    choice = labels.get(name_pair(one))
    if choice is None or choice == "tie":
        return None if choice is None else 0.0
    return 1.0 if (choice == "1") == _is_turned(one) else -1.0


def _is_turned(one: AnswerPair) -> bool:
    """Say whether the tuned model's answer is laid out first."""
    return hashlib.sha256(name_pair(one).encode()).digest()[0] % 2 == 1


def _shuffle(pairs: Iterator[AnswerPair]) -> list[AnswerPair]:
    """Order pairs by chance, in the same way whenever it is done."""
    return sorted(pairs, key=lambda one: hashlib.sha256(one.id.encode()).digest())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
