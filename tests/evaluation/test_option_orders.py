"""The order of the options: a preference for a letter drops out of choice and verdict."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.evaluation.interface import EvaluationSuite, ModelTools, ScoredRow
from medcot.evaluation.option_orders import average_losses, list_letters, list_orders
from medcot.evaluation.suite import evaluate, make_suite
from medcot.records import Question, TokenLoss
from medcot.reporting.build import build_report
from medcot.reporting.markdown import render_markdown
from medcot.reporting.schema import Report
from medcot.reporting.seeds import SeedRows
from medcot.reporting.storage import report_from_json, report_to_json

TEXTS = ("aspirin", "heparin", "rest", "surgery")
Prefer = Callable[[str, str, str], float]
"""Returns the log-probability of an option: from question, text and letter."""


def ask(n: int, key: str = "B") -> Question:
    return Question(f"q{n}", f"Which of these, {n}?", dict(zip("ABCD", TEXTS, strict=True)), key)


def tools_of(prefer: Prefer) -> ModelTools:
    def compare(items: Sequence[tuple[str, Sequence[str]]]) -> list[list[TokenLoss]]:
        found: list[list[TokenLoss]] = []
        for prompt, letters in items:
            lines = prompt.splitlines()
            shown = dict(line.split(". ", 1) for line in lines if line[1:3] == ". ")
            found.append(
                [
                    TokenLoss(-prefer(lines[0], shown[one.strip()], one.strip()), 1)
                    for one in letters
                ]
            )
        return found

    return ModelTools(lambda _: [], lambda _: [], compare)


def suite_of(questions: Sequence[Question], orders: int = 0) -> EvaluationSuite:
    config = make_config("demo", {"mcq_orders": orders, "mcq_samples": 0})
    return make_suite(config, [], None, {"exam": list(questions)})


def score(suite: EvaluationSuite, prefer: Prefer) -> list[ScoredRow]:
    return evaluate(suite, tools_of(prefer), [], lambda _: None)


def test_the_orders_of_a_question_put_each_option_once_at_each_letter() -> None:
    turned = list_orders(ask(1), 0)
    assert len(turned) == 4
    for letter in "ABCD":
        assert {one.options[letter] for one in turned} == set(TEXTS)
    assert all(one.options[one.answer] == "heparin" for one in turned)
    assert list_orders(ask(1), 1) == [ask(1)]
    assert len(list_orders(ask(1), 3)) == 3
    assert len(list_orders(ask(1), 9)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "All of the above",
        "None of the above",
        "Both A and C",
        "A, B and D",
        "以上都是",
        "A和B",
        "both of them",
        "None of these",
        "Any of the following",
        "All above are true",
        "The above, but at night",
        "Neither option above",
        "A and B but not C",
        "Option B and C only",
        "both a and c",
        "选项A和B",
        "A、B均正确",
        "除以上外",
        "上述各项",
    ],
)
def test_a_question_whose_options_speak_of_others_keeps_its_order(text: str) -> None:
    question = Question("q", "Which?", {"A": "one", "B": "two", "C": text}, "A")
    assert list_orders(question, 0) == [question]


@pytest.mark.parametrize(
    "text",
    [
        "Vitamin A",
        "hepatitis B",
        "Crohn disease and colitis",
        "ABO",
        "vitamins A and D",
        "influenza A or B",
        "B and T cells",
        "pain below the knee",
        "all above the knee",
        "above 140 mmHg",
        "an above-knee amputation",
        "the day following surgery",
        "a preceding infection",
        "one of the following drugs",
        "60岁以上",
        "收缩压140 mmHg以上",
        "3次以上",
    ],
)
def test_an_option_that_speaks_of_no_other_is_turned(text: str) -> None:
    question = Question("q", "Which?", {"A": "one", "B": "two", "C": text}, "A")
    assert len(list_orders(question, 0)) == 3


def test_a_letter_that_adds_the_same_to_any_option_drops_out() -> None:
    worth = {"aspirin": 0.1, "heparin": 0.3, "rest": 0.2, "surgery": 0.0}
    letters = list("ABCD")
    bias = {"A": 5.0, "B": -2.0, "C": 0.5, "D": 0.0}
    readings = [
        [-worth[one.options[letter]] - bias[letter] for letter in letters]
        for one in list_orders(ask(1), 0)
    ]
    found = average_losses(letters, readings)
    assert min(found, key=found.__getitem__) == "B"
    assert found["A"] - found["B"] == pytest.approx(0.2)
    assert list_letters(letters, readings) == ("A", "A", "A", "A")
    assert average_losses(letters, readings[:1]) == dict(zip(letters, readings[0], strict=True))


def knows(share: float, seed: int = 1) -> Prefer:
    """A model that knows the answer to a share of the questions, and guesses at the others."""

    def prefer(question: str, text: str, letter: str) -> float:
        chance = random.Random(f"{seed}{question}")
        if chance.random() < share:
            return 2.0 if text == "heparin" else 0.0
        return random.Random(f"{seed}{question}{text}").random()

    return prefer


def biased(prefer: Prefer, letter: str, by: float = 9.0) -> Prefer:
    return lambda question, text, shown: prefer(question, text, shown) + by * (shown == letter)


def report_of(before: Prefer, after: Prefer, orders: int = 0) -> Report:
    """120 questions, 90 of which have the key B, as an exam may have."""
    keys = [ask(n, "B" if n % 4 else "C") for n in range(120)]
    suite = suite_of(keys, orders)
    rows = [score(suite, one) for one in (before, after)]
    made = build_report(rows[0], rows[1], suite, make_config("demo", {"mcq_orders": orders}))
    return report_from_json(report_to_json(made))


def test_a_planted_preference_for_the_letter_of_the_key_is_no_improvement() -> None:
    same = knows(0.0)
    raw = report_of(biased(same, "A"), biased(same, "B"), orders=1)
    assert raw.verdict.mcq == "improved"
    report = report_of(biased(same, "A"), biased(same, "B"))
    assert report.verdict.mcq == "no evidence"
    assert report.paired.mcq
    assert report.paired.mcq.difference == 0
    assert report.letter_bias
    assert report.letter_bias.verdict_as_given == "improved"
    assert (report.letter_bias.before.letter, report.letter_bias.after.letter) == ("A", "B")
    assert report.letter_bias.after.share == 1.0
    assert report.letter_bias.expected == 0.25
    assert any(one.code == "caution_letters" for one in report.cautions)
    page = render_markdown(report)
    assert "favourite letter was A in 100.0 %" in page
    assert "that change is about letters" in page
    assert "字母偏好" in render_markdown(report, "zh")


def test_what_a_model_learnt_is_found_behind_its_preference_for_a_letter() -> None:
    report = report_of(biased(knows(0.1), "A"), biased(knows(0.9), "A"))
    assert report.verdict.mcq == "improved"
    assert report.letter_bias
    assert report.letter_bias.as_given.difference == 0


def test_a_recipe_without_evidence_is_not_put_down_to_letters() -> None:
    suite, config = suite_of([ask(n) for n in range(120)]), make_config("demo", {"seeds": 3})
    before, after = score(suite, knows(0.1)), score(suite, knows(0.9))
    seeds = [
        SeedRows(number, number, number == 1, None, after if number == 1 else before)
        for number in (1, 2, 3)
    ]
    report = build_report(before, after, suite, config, seeds=seeds)
    assert report.verdict.mcq == "no evidence"
    assert report.letter_bias
    assert report.letter_bias.verdict_as_given == "improved"
    assert all(one.code != "caution_letters" for one in report.cautions)


def test_the_same_model_twice_differs_by_exactly_nothing() -> None:
    report = report_of(knows(0.5), knows(0.5))
    assert report.paired.mcq
    assert report.paired.mcq.difference == 0
    assert report.letter_bias
    assert report.letter_bias.as_given.difference == 0


def test_a_model_without_any_preference_chooses_the_first_option() -> None:
    (row,) = score(suite_of([ask(1)]), lambda *_: 0.0)
    assert row.choice == "A"


def test_sides_that_were_read_in_other_orders_are_not_compared() -> None:
    suite = suite_of([ask(n) for n in range(9)])
    before = score(suite_of([ask(n) for n in range(9)], orders=1), knows(0.5))
    with pytest.raises(InputError, match="orders of its options"):
        build_report(before, score(suite, knows(0.5)), suite, make_config("demo"))
