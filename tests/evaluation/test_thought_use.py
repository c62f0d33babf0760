"""Is the thought used? What likelihoods say of the model's own thought and of a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from medcot.config.presets import make_config
from medcot.evaluation.interface import EvaluationSuite, ModelTools, ScoredRow
from medcot.evaluation.suite import evaluate, make_suite
from medcot.records import Case, Generation, Prompt, Score, TokenLoss
from medcot.reporting.build import build_report
from medcot.reporting.markdown import render_markdown
from medcot.reporting.schema import Report
from medcot.reporting.storage import report_from_json, report_to_json

Loss = Callable[[str, str], float]
"""Returns the loss per token of a response: from the thought before it, and from itself."""


def suite_of(rows: int = 20, tested: int = 20, answered: int = 20) -> EvaluationSuite:
    cases = [Case(f"c{n}", f"Question {n}?", f"hint{n}.", f"rest{n}.") for n in range(rows)]
    given = {"test_samples": 50, "generate_samples": answered, "thought_samples": tested}
    return make_suite(make_config("demo", given), cases, None, {})


def score(
    suite: EvaluationSuite,
    loss: Loss,
    output: str = "hint{}.\n</think>\n\nx",
    score_pairs: Score | None = None,
) -> list[ScoredRow]:
    def score_by_thought(pairs: Sequence[Prompt]) -> list[TokenLoss]:
        found: list[TokenLoss] = []
        for pair in pairs:
            text = pair.text + pair.completion
            thought, _, response = text.rpartition("<think>")[2].partition("</think>")
            found.append(TokenLoss(10 * loss(thought.strip(), response.strip()), 10))
        return found

    def generate(asked: Sequence[str]) -> list[Generation]:
        numbers = [one.split("Question ")[1].split("?")[0] for one in asked]
        return [Generation(output.format(number), 9, finished=True) for number in numbers]

    tools = ModelTools(
        generate,
        score_pairs or score_by_thought,
        lambda _: [],
        lambda turns, **_: f"{turns[-1].content}\n",
    )
    return evaluate(suite, tools, [], lambda _: None)


def uses(thought: str, response: str) -> float:
    """A model whose answer rests on the thought."""
    number = response.removeprefix("rest").rstrip(".")
    return 1.0 if thought == f"hint{number}." else 3.0 if thought else 2.0


def ignores(thought: str, response: str) -> float:
    """A model to which what stands in the thought tells nothing of the answer."""
    return 2.0


def report_of(before: Loss, after: Loss) -> Report:
    suite = suite_of()
    made = build_report(score(suite, before), score(suite, after), suite, make_config("demo"))
    return report_from_json(report_to_json(made))


def test_four_thoughts_are_scored_before_each_reference_answer() -> None:
    for row in score(suite_of(), uses):
        assert row.thought_losses
        assert (row.thought_losses.none, row.thought_losses.own) == (2.0, 1.0)
        assert (row.thought_losses.reference, row.thought_losses.wrong) == (1.0, 3.0)


def test_a_thought_that_the_model_never_closed_is_closed_for_it() -> None:
    rows = score(suite_of(), uses, output="hint{}.")
    assert {row.thought_losses and row.thought_losses.own for row in rows} == {1.0}


@pytest.mark.parametrize(
    ("rows", "tested", "answered", "found"),
    [(9, 4, 9, 4), (9, 9, 3, 3), (9, 0, 9, 0), (1, 1, 1, 0)],
)
def test_as_many_rows_are_tested_as_asked_for_if_they_are_answered(
    rows: int, tested: int, answered: int, found: int
) -> None:
    scored = score(suite_of(rows, tested, answered), uses)
    assert sum(row.thought_losses is not None for row in scored) == found


def test_a_model_that_learns_to_ignore_its_thought_falls_in_both_measures() -> None:
    report = report_of(uses, ignores)
    assert report.before.thought_gain == 1.0
    assert report.before.thought_harm == 2.0
    assert report.after.thought_gain == report.after.thought_harm == 0
    for name in ("thought_gain", "thought_harm"):
        found = report.paired.of(name)
        assert found
        assert found.verdict("higher") == "worse"
    page = render_markdown(report)
    assert "## Is the thought used?" in page
    assert "+1.000 nats per token for the right answer before, 0 after" in page
    assert "uses its thought less" in page
    assert "更少地利用思考" in render_markdown(report, "zh")


WORDS = 40


def copies(weight: float) -> Loss:
    """A model with one weight: how often it takes the answer's number from the thought, and does
    not guess it."""

    def loss(thought: str, response: str) -> float:
        same = thought.removeprefix("hint") == response.removeprefix("rest")
        return -math.log(weight * same + (1 - weight) / WORDS)

    return loss


def train(thoughts: Sequence[str], responses: Sequence[str]) -> Loss:
    """Fit the weight to rows, by the likelihood of their answers after their thoughts."""
    rows = list(zip(thoughts, responses, strict=True))
    weights = [percent / 100 for percent in range(1, 100)]
    return copies(min(weights, key=lambda one: sum(copies(one)(*row) for row in rows)))


def test_a_model_trained_on_permuted_thoughts_falls_in_both_measures() -> None:
    thoughts = [f"hint{n}." for n in range(WORDS)]
    responses = [f"rest{n}." for n in range(WORDS)]
    untrained = copies(0.5)
    kept = report_of(untrained, train(thoughts, responses))
    permuted = report_of(untrained, train([*thoughts[1:], thoughts[0]], responses))
    for name in ("thought_gain", "thought_harm"):
        found = [report.paired.of(name) for report in (kept, permuted)]
        assert [one and one.verdict("higher") for one in found] == ["improved", "worse"]


def test_the_same_model_twice_differs_by_exactly_zero() -> None:
    report = report_of(uses, uses)
    for name in ("thought_gain", "thought_harm"):
        found = report.paired.of(name)
        assert found
        assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert "no change at all" in render_markdown(report)


def test_a_report_without_tested_rows_says_nothing_of_it() -> None:
    suite = suite_of(tested=0)
    made = build_report(score(suite, uses), score(suite, uses), suite, make_config("demo"))
    assert "thought_gain" not in report_to_json(made)["paired"]
    assert "Is the thought used" not in render_markdown(made)


@pytest.mark.parametrize("answered", [0, 20])
def test_the_answer_alone_is_scored_after_the_thought_that_the_model_writes(answered: int) -> None:
    suite = replace(suite_of(tested=0, answered=answered), answer_alone=True)
    scored: list[Prompt] = []

    def score_pairs(pairs: Sequence[Prompt]) -> list[TokenLoss]:
        scored.extend(pairs)
        return [TokenLoss(2.0, 4) for _ in pairs]

    rows = score(suite, uses, output="own {}.", score_pairs=score_pairs)
    assert {pair.begun for pair in scored} == {f"own {n}.\n</think>\n\n" for n in range(20)}
    assert {pair.completion for pair in scored} == {f"rest{n}." for n in range(20)}
    assert {row.output is None for row in rows} == {answered == 0}
    plain = replace(suite, thinks=False, cases=(replace(suite.cases[0], thought=""),), generated=())
    scored.clear()
    score(plain, uses, output="never", score_pairs=score_pairs)
    assert [(pair.begun, pair.completion) for pair in scored] == [("", "rest0.")]
