"""A judge's preferences, corrected by those of somebody who compared some pairs by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.evaluation.judge import JudgeResult, Preference, pair_answers, tally
from medcot.evaluation.pair_labels import correct_preferences, list_pairs
from medcot.reporting.build import build_report
from medcot.reporting.schema import Facts
from medcot.reporting.storage import report_from_json, report_to_json
from tests.evaluation.test_judge import exam, rows

GOOD, BAD = "It is so.", "It is not so."


def asked(count: int, after: Callable[[int], str]) -> tuple[Any, ...]:
    """Answers of both sides and their suite: the untuned model is always bad."""
    return rows([BAD] * count), rows([after(n) for n in range(count)]), exam(count)


def judge(given: tuple[Any, ...], says: Callable[[str], Preference]) -> JudgeResult:
    return tally({one.id: says(one.after) for one in pair_answers(*given)}, "m", "u")


def by_hand(given: tuple[Any, ...], count: int) -> dict[str, str]:
    """What a careful person says of the first pairs that are laid out."""
    found: dict[str, str] = {}
    for row in list_pairs(*given)[:count]:
        good = [GOOD in row["answer_1"], GOOD in row["answer_2"]]
        found[row["id"]] = "tie" if good[0] == good[1] else "1" if good[0] else "2"
    return found


def half_good(n: int) -> str:
    return GOOD if n % 2 else f"{BAD} At all."


def test_pairs_are_laid_out_at_random_without_their_authors() -> None:
    given = asked(60, lambda n: f"{GOOD} {n}")
    laid_out = list_pairs(*given)
    assert len(laid_out) == 30
    assert {row["better"] for row in laid_out} == {None}
    places = [GOOD in row["answer_1"] for row in laid_out]
    assert 5 < sum(places) < 25
    assert list_pairs(*given) == laid_out
    assert not list_pairs(*asked(4, lambda n: BAD))


def test_labels_correct_a_judge_that_favours_one_model() -> None:
    given = asked(60, half_good)
    judged = judge(given, lambda answer: "after")
    alone = correct_preferences(judged, *given, {})
    assert alone.judged
    assert (alone.judged.difference, alone.checked, alone.corrected) == (1.0, 0, None)
    assert "Its own bias is not corrected" in alone.sentence
    assert "10 pairs are needed, 0 are there" in alone.sentence
    assert "没有校正" in alone.text("zh")
    found = correct_preferences(judged, *given, by_hand(given, 30))
    assert found.checked == 30
    assert found.bias == pytest.approx(1 - (found.checked_agreement or 0))
    assert found.corrected
    assert found.corrected.low is not None
    assert found.corrected.high is not None
    assert found.corrected.low < 0.5 < found.corrected.high < 1
    assert "On 30 pairs compared by hand it said the same in" in found.sentence
    assert "not corrected" not in found.sentence
    assert "人工比较的 30 对" in found.text("zh")
    report = build_report(*given, make_config("demo"), Facts(judge=found))
    assert report_from_json(report_to_json(report)).facts.judge == found


def test_a_better_answer_is_the_tuned_models_wherever_it_is_laid_out() -> None:
    given = asked(30, lambda n: f"{GOOD} {n}")
    found = correct_preferences(judge(given, lambda _: "after"), *given, by_hand(given, 30))
    assert (found.checked_agreement, found.bias) == (1.0, 0.0)
    turned = {name: "2" if one == "1" else "1" for name, one in by_hand(given, 30).items()}
    found = correct_preferences(judge(given, lambda _: "after"), *given, turned)
    assert (found.checked_agreement, found.bias) == (0.0, 2.0)


def test_a_pair_that_was_skipped_ends_what_counts_as_compared() -> None:
    given = asked(30, lambda n: f"{GOOD} {n}")
    labels = by_hand(given, 30)
    del labels[list(labels)[11]]
    found = correct_preferences(judge(given, lambda _: "after"), *given, labels)
    assert found.checked == 11
    del labels[list(labels)[3]]
    found = correct_preferences(judge(given, lambda _: "after"), *given, labels)
    assert (found.checked, found.corrected) == (3, None)


def test_equal_answers_are_a_tie_and_need_no_comparison() -> None:
    given = asked(30, lambda n: GOOD if n % 2 else BAD)
    found = correct_preferences(judge(given, lambda _: "tie"), *given, by_hand(given, 30))
    assert found.checked == 30
    none = asked(12, lambda n: BAD)
    same = correct_preferences(judge(none, lambda _: "tie"), *none, {})
    assert same.judged
    assert (same.judged.difference, same.checked) == (0.0, 0)
    assert "judge_pairs.jsonl" not in same.sentence


def test_a_judge_that_was_refused_or_not_understood_is_left_as_it_is() -> None:
    given = asked(12, half_good)
    refused = JudgeResult("m", "u", reached=False, sentence="no")
    assert correct_preferences(refused, *given, {}) == refused
    silent = judge(given, lambda _: "unread")
    assert correct_preferences(silent, *given, by_hand(given, 12)) == silent
