"""Answers graded by criteria with points, through the real client over loopback."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.evaluation.grading import (
    CriteriaSets,
    Criterion,
    Graded,
    find_graded,
    grade_answers,
    list_checks,
    load_criteria,
    plant_answers,
    require_criteria,
)
from medcot.evaluation.interface import EvaluationSuite, ScoredRow
from medcot.evaluation.judge import AnswerPair, GradeResult, check_judge
from medcot.evaluation.scorers import make_row
from medcot.evaluation.suite import make_suite
from medcot.records import Case, Generation
from tests.support.judge_endpoint import endpoint

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

DRUG, ICE, HARM = "Names the drug", "Says to cool it", "Advises to stop insulin"
RUBRIC = (Criterion(DRUG, 5), Criterion(ICE, 3), Criterion(HARM, -4))
PARTS = re.compile(r"<<<(QUESTION|ANSWER|CRITERION)\n(.*?)\n\1>>>", re.DOTALL)


def suite_of(count: int) -> EvaluationSuite:
    config = make_config("demo", {"test_samples": count, "generate_samples": count})
    cases = [Case(f"c{n}", f"Question {n}?", "t", "The reference.") for n in range(count)]
    return make_suite(config, cases, None, {})


def rows(answers: list[str]) -> list[ScoredRow]:
    return [
        make_row("case", "", f"c{n}", "p", None, Generation(f"secret</think>{text}", 9, True))
        for n, text in enumerate(answers)
    ]


def criteria_of(count: int) -> CriteriaSets:
    return CriteriaSets({f"c{n}": RUBRIC for n in range(count)}, {})


def reads(prompt: str) -> str:
    """A judge that reads: the answer does what a criterion asks if it has its last word."""
    parts = dict(PARTS.findall(prompt))
    return "yes" if parts["CRITERION"].split()[-1] in parts["ANSWER"] else "It does not.\n\nNo."


class Judge:
    """Stands in for the endpoint, and counts what it is asked."""

    def __init__(self, reply: Callable[[str], str], patch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.reply = reply
        patch.setattr("medcot.evaluation.grading.connect", lambda url, model: self)

    def __call__(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.reply(prompt)


def grade(before: list[str], after: list[str], **more: Any) -> GradeResult:
    count = len(before)
    more = {"sets": criteria_of(count)} | more
    return grade_answers(rows(before), rows(after), suite_of(count), url="u", model="m", **more)


def test_points_are_earned_by_criteria_and_lost_by_bad_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Judge(reads, monkeypatch)
    found = grade(["nothing", "drug insulin"], ["drug it", "drug"])
    assert found.scores == {"c0": (0.0, 1.0), "c1": (1 / 8, 5 / 8)}
    assert (found.before, found.after) == (1 / 16, 13 / 16)
    assert (found.questions, found.decisions, found.unread) == (2, 12, 0)
    assert "6.2 % of the points and the tuned model 81.2 %" in str(found.messages[0])


def test_the_endpoint_hears_one_criterion_at_a_time_and_not_who_answered() -> None:
    with endpoint(lambda answers: "yes") as (url, requests):
        one = CriteriaSets({"c0": (Criterion(DRUG, 1),)}, {})
        found = grade_answers(rows(["one"]), rows(["two"]), suite_of(1), one, url, "judge-1")
    assert (found.reached, found.before, found.after) == (True, 1.0, 1.0)
    assert len(requests) == 2
    for request in requests:
        text = request["body"]["messages"][0]["content"]
        assert request["body"]["temperature"] == 0
        assert not re.search(r"before|after|tuned|base|secret|c0", text)


def test_equal_answers_are_graded_once_and_differ_by_exactly_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Judge(lambda prompt: "no" if len(prompt) % 2 else "yes", monkeypatch)
    monkeypatch.setattr("medcot.evaluation.grading.LEAST_RIGHT", 0.0)
    found = grade(["same"] * 5, ["same"] * 5)
    assert found.judged
    assert (found.judged.difference, found.judged.p_value) == (0.0, 1.0)
    assert sum("<<<ANSWER\nsame\n" in one for one in judge.asked) == 15


def test_an_answer_that_is_missing_earns_nothing_and_costs_no_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Judge(reads, monkeypatch)
    found = grade(["", "drug"], ["drug it", ""])
    assert found.scores == {"c0": (0.0, 1.0), "c1": (5 / 8, 0.0)}
    assert not any("(no answer)" in one for one in judge.asked)


@pytest.mark.parametrize(("reply", "met", "unmet"), [("yes", 100, 0), ("no", 0, 100), ("?", 0, 0)])
def test_a_judge_that_fails_planted_answers_does_not_grade(
    reply: str, met: int, unmet: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(lambda prompt: reply, monkeypatch)
    found = grade(["a"] * 6, ["b"] * 6)
    assert (found.reached, found.before, found.corrected) == (False, None, None)
    assert f"about {met} % of those that meet a criterion and {unmet} %" in str(found.messages[0])
    assert f"符合细则的判对 {met}%，不符合细则的判对 {unmet}%" in found.messages[0].text("zh")
    assert not any("<<<ANSWER\na\n" in one for one in judge.asked)


def test_planted_answers_are_the_examples_given_or_else_words_of_criteria() -> None:
    pair = AnswerPair("1", "Q?", "r", "a", "b")
    given = Graded(pair, (Criterion("c", 1, ("yes it is",), ("no it is not",)),))
    own = Graded(
        AnswerPair("2", "R?", "r", "a", "b"), (Criterion(DRUG, 1), Criterion("不建议手术", 1))
    )
    planted = [(one.question, one.answer, is_met) for one, is_met in plant_answers([given, own])]
    assert planted == [
        ("Q?", "yes it is", True), ("Q?", "no it is not", False),
        ("R?", DRUG, True), ("R?", "c", False), ("R?", "不建议手术", True),
    ]  # fmt: skip
    assert plant_answers([given]) == []


def by_hand(count: int, before: str, after: str) -> dict[str, bool]:
    """What a careful person says of the answers laid out for checking."""
    graded = find_graded(
        rows([before] * count), rows([after] * count), suite_of(count), criteria_of(count)
    )
    laid_out = list_checks(graded)
    assert all(row["met"] is None for row in laid_out)
    return {row["id"]: row["criterion"].split()[-1] in row["answer"] for row in laid_out}


def favours(word: str) -> Callable[[str], str]:
    """A judge that likes whatever the tuned model says about one criterion."""

    def reply(prompt: str) -> str:
        parts = dict(PARTS.findall(prompt))
        return "yes" if word in parts["ANSWER"] and parts["CRITERION"] == ICE else reads(prompt)

    return reply


def test_what_was_checked_by_hand_corrects_a_judge_that_favours_one_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Judge(favours("tuned"), monkeypatch)
    labels = dict(list(by_hand(40, "drug", "drug, tuned").items())[: 12 * 6])
    found = grade(["drug"] * 40, ["drug, tuned"] * 40, labels=labels)
    assert found.judged
    assert found.judged.difference == pytest.approx(3 / 8)
    assert found.checked == 12
    assert found.bias == pytest.approx(3 / 8)
    assert found.agreement == pytest.approx(5 / 6)
    assert found.corrected
    assert found.corrected.low is not None
    assert found.corrected.high is not None
    assert found.corrected.low < 0 < found.corrected.high
    assert abs(found.corrected.difference) < 0.05
    said = " ".join(map(str, found.messages))
    assert "On 12 questions checked by hand it agreed with 83 % of the decisions" in said
    assert "人工核对的 12 个问题" in " ".join(one.text("zh") for one in found.messages)


def test_too_few_checked_questions_leave_the_errors_in_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Judge(reads, monkeypatch)
    labels = dict(list(by_hand(12, "drug", "it").items())[:-1])  # one decision is left out
    few = {name: met for name, met in labels.items() if name in list(labels)[:30]}
    found = grade(["drug"] * 12, ["it"] * 12, labels=few)
    assert (found.checked, found.corrected) == (5, None)
    assert "10 questions are needed, 5 are there" in str(found.messages[-1])


def test_a_question_that_was_skipped_ends_what_counts_as_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else only the easy ones would be checked, and no random part of them."""
    Judge(reads, monkeypatch)
    labels = by_hand(12, "drug", "it")
    skipped = list(labels)[6 * 2]
    rest = {name: met for name, met in labels.items() if name != skipped}
    assert grade(["drug"] * 12, ["it"] * 12, labels=rest).checked == 2


def test_answers_that_are_missing_are_not_taken_for_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Judge(reads, monkeypatch)
    found = grade([""] * 12 + ["drug"] * 4, [""] * 12 + ["it"] * 4)
    assert (found.checked, found.corrected) == (0, None)


def test_what_was_decided_is_kept_and_another_answer_is_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge, kept = Judge(reads, monkeypatch), dict[str, Any]()
    first = grade(["a", "b"], ["drug", "it"], save=kept.setdefault)
    asked = len(judge.asked)
    assert grade(["a", "b"], ["drug", "it"], known=kept) == first
    assert len(judge.asked) == asked
    grade(["a", "b"], ["drug", "new"], known=kept)
    assert len(judge.asked) == asked + 3


def test_an_unreachable_judge_costs_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    found = grade_answers(rows(["a"]), rows(["b"]), suite_of(1), criteria_of(1), url, "m")
    assert found.reached is False
    assert url in str(found.messages[0])


def write(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return str(path)


def test_criteria_are_read_from_a_file_of_healthbenchs_shape(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        {"id": "c1", "rubrics": [{"criterion": DRUG, "points": 5, "tags": ["axis:accuracy"]}]},
        {"question": "Question 0 ?", "rubrics": [
            {"criterion": "提到复查", "points": 2.5, "met": ["一周后复查"], "unmet": ["不必复查"]},
            {"criterion": HARM, "points": -4},
        ]},
    )  # fmt: skip
    found, suite = load_criteria(path), suite_of(3)
    assert found.find(suite.cases[1]) == (Criterion(DRUG, 5),)
    zh = Criterion("提到复查", 2.5, ("一周后复查",), ("不必复查",))
    assert found.find(suite.cases[0]) == (zh, Criterion(HARM, -4))
    assert found.find(suite.cases[2]) == ()
    require_criteria(path, suite)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"id": "a"}, "found none; expected a list"),
        ({"id": "a", "rubrics": "x"}, "rubrics: found"),
        ({"id": "a", "rubrics": ["x"]}, "in the list"),
        ({"id": "a", "rubrics": [{"criterion": " ", "points": 1}]}, "a criterion without text"),
        ({"id": "a", "rubrics": [{"criterion": "x"}]}, "points None"),
        ({"id": "a", "rubrics": [{"criterion": "x", "points": True}]}, "points True"),
        ({"id": "a", "rubrics": [{"criterion": "x", "points": 0}]}, "points 0"),
        ({"id": "a", "rubrics": [{"criterion": "x", "points": -1}]}, "points above 0"),
        ({"id": "a", "rubrics": [{"criterion": "x", "points": 1, "met": "y"}]}, "met that is no"),
        ({"rubrics": [{"criterion": "x", "points": 1}]}, "neither id nor question"),
    ],
)
def test_a_row_that_is_wrong_is_named(row: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--judge-criteria .*line 1.*{re.escape(named)}"):
        load_criteria(write(tmp_path / "r.jsonl", row))


def test_criteria_that_fit_no_answered_question_are_refused(tmp_path: Path) -> None:
    criterion = {"criterion": DRUG, "points": 1}
    path = write(tmp_path / "r.jsonl", {"id": "other", "rubrics": [criterion]})
    with pytest.raises(InputError, match="none of its questions is among the 2"):
        require_criteria(path, suite_of(2))
    twice = write(tmp_path / "t.jsonl", *[{"id": "a", "rubrics": [criterion]}] * 2)
    with pytest.raises(InputError, match=r"line 2, id: .*which an earlier row has"):
        load_criteria(twice)
    with pytest.raises(InputError, match=r"--judge-criteria .*no endpoint given"):
        check_judge(make_config("demo", {"judge_criteria": path}))
