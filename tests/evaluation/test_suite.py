"""The evaluation suite: what is asked, in which order, what is kept, what counts as right."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.data.mcq_catalog import label_sets
from medcot.data.prompts import ChatTemplate, choice_cue
from medcot.evaluation.interface import EvaluationSuite, ModelTools, ScoredRow, row_to_json
from medcot.evaluation.suite import evaluate, make_suite, order_rows, summarise
from medcot.records import Case, Claim, Generation, Prompt, Question, TokenLoss, Turn

CLOSED = "Some thought.\n</think>\n\nRest and fluids."


def case(number: int, **changes: Any) -> Case:
    chance = random.Random(number)
    thought = "Cough and fever. " * chance.randint(1, 30)
    values = {"id": f"c{number}", "question": f"Question {number}?", "thought": thought}
    return Case(**(values | {"response": "Rest."} | changes))


def question(number: int, **changes: Any) -> Question:
    values: dict[str, Any] = {"id": f"q{number}", "question": f"Which is {number}?"}
    values |= {"options": {"A": "one", "B": "two", "C": "three"}, "answer": "ABC"[number % 3]}
    return Question(**(values | changes))


def last_turn(before: str = "") -> ChatTemplate:
    """A template that shows the last turn alone."""

    def render(turns: Sequence[Turn], *, thinks: bool = True) -> str:
        return f"{before}{turns[-1].content}"

    return render


class Model:
    """A model that answers by rule and remembers what it was asked."""

    def __init__(self, say: Callable[[str], Generation] | None = None) -> None:
        self.say = say or (lambda prompt: Generation(CLOSED, 20, True))
        self.generated: list[list[str]] = []
        self.scored: list[list[Prompt]] = []
        self.compared: list[list[str]] = []

    def tools(self) -> ModelTools:
        return ModelTools(self.generate, self.score, self.score_options, last_turn("U:"))

    def generate(self, asked: Sequence[str]) -> list[Generation]:
        self.generated.append(list(asked))
        return [self.say(prompt) for prompt in asked]

    def score(self, asked: Sequence[Prompt]) -> list[TokenLoss]:
        self.scored.append(list(asked))
        return [TokenLoss(len(one.completion) / 2, len(one.completion)) for one in asked]

    def score_options(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[TokenLoss]]:
        """Prefers B, then A, by a fixed amount."""
        self.compared.append([prompt for prompt, _ in asked])
        return [[TokenLoss([2.0, 1.0, 3.0][i], 1) for i in range(len(o))] for _, o in asked]


def suite_of(
    cases: int = 0, generated: int = 0, questions: int = 0, method: str = "likelihood", **more: Any
) -> EvaluationSuite:
    config = make_config(
        "demo",
        {
            "test_samples": max(1, cases),
            "generate_samples": generated,
            "mcq_method": method,
            "mcq_orders": more.get("orders", 1),
            "mcq_samples": 0,
        },
    )
    asked = {"set": [question(n) for n in range(questions)]} if questions else {}
    fixed = more.get("fixed")
    return make_suite(config, [case(n) for n in range(cases)], fixed, asked)


def hold(exam: EvaluationSuite, model: Model, done: Sequence[ScoredRow] = ()) -> list[Any]:
    saved: list[ScoredRow] = []
    rows = evaluate(exam, model.tools(), done, saved.append)
    json.dumps([row_to_json(row) for row in saved])  # what is saved goes to a file
    return [rows, saved]


def letter_sayer(output: str, finished: bool = True) -> Callable[[str], Generation]:
    return lambda prompt: Generation(output, 10, finished)


def test_without_thoughts_none_is_asked_for_and_none_is_measured() -> None:
    config = make_config("demo", {"thought": "none", "mcq_method": "generate"})
    fixed = case(9, id="fixed")
    exam = make_suite(config, [case(1, thought="")], fixed, {"set": [question(0)]})
    model = Model(letter_sayer("Answer: A"))
    rows, _ = hold(exam, model)
    assert not any("think" in prompt.lower() for asked in model.generated for prompt in asked)
    assert [row.answer for row in rows] == ["Answer: A"] * 3
    assert rows[2].correct
    found = summarise(rows, exam)
    assert (found.closed_rate, found.thought_tokens) == (None, None)
    assert found.finished_rate == 1.0
    assert found.answer_tokens == 10


# --- what is asked ---------------------------------------------------------------------------


def test_config_decides_how_many_rows_are_scored_answered_and_asked() -> None:
    config = make_config("demo", {"test_samples": 5, "generate_samples": 2, "mcq_samples": 4})
    exam = make_suite(
        config, [case(n) for n in range(9)], None, {"s": [question(n) for n in range(9)], "e": []}
    )
    assert [one.id for one in exam.cases] == ["c0", "c1", "c2", "c3", "c4"]
    assert exam.generated == exam.cases[:2]
    assert len(exam.questions["s"]) == 4
    assert "e" not in exam.questions


def test_a_file_is_known_by_its_stem_and_no_two_sets_by_one_name() -> None:
    names = ["sample", "a/exam.jsonl", "exam.csv", "b/exam.jsonl", "medqa", "medqa.jsonl"]
    names += ["test rows.json", "sample.jsonl"]
    labels = label_sets(names, taken=("test rows",))
    assert labels == {
        "sample": "sample",
        "a/exam.jsonl": "exam",
        "exam.csv": "exam.csv",
        "b/exam.jsonl": "b/exam.jsonl",
        "medqa": "medqa",
        "medqa.jsonl": "medqa.jsonl",
        "test rows.json": "test rows.json",
        "sample.jsonl": "sample.jsonl",
    }
    for count in range(len(names)):  # a set added later changes no other's name
        assert label_sets(names[:count]).items() <= label_sets(names).items()
    asked = {"/home/me/exam.jsonl": [question(0)]}
    exam = make_suite(make_config("demo"), [], None, asked)
    rows, _ = hold(exam, Model())
    assert (list(exam.questions), rows[0].set) == (["exam"], "exam")


def test_a_larger_sample_of_questions_keeps_those_of_a_smaller() -> None:
    asked = {"s": [question(n) for n in range(50)]}
    few, more = (
        {
            q.id
            for q in make_suite(
                make_config("demo", {"mcq_samples": count}), [], None, asked
            ).questions["s"]
        }
        for count in (10, 20)
    )
    assert few < more
    assert few != {f"q{n}" for n in range(10)}


def test_context_and_options_stand_in_the_prompt_of_either_method() -> None:
    asked = question(1, context="In 655 patients, BCS was done.")
    for method in ("likelihood", "generate"):
        config = make_config("demo", {"mcq_method": method})
        model = Model()
        hold(make_suite(config, [], None, {"s": [asked]}), model)
        prompt = (model.compared or model.generated)[0][0]
        assert "In 655 patients" in prompt
        assert "A. one\nB. two\nC. three" in prompt


# --- rows ------------------------------------------------------------------------------------


def test_rows_come_in_the_suites_order_whatever_their_length() -> None:
    exam = suite_of(cases=40, generated=3, questions=10)
    rows, saved = hold(exam, Model())
    assert [row.id for row in rows] == [
        *(f"c{n}" for n in range(40)),
        *(f"q{n}" for n in range(10)),
    ]
    assert sorted(row.id for row in saved) == sorted(row.id for row in rows)


def test_a_scored_row_holds_loss_and_an_answered_one_its_parts() -> None:
    rows, _ = hold(suite_of(cases=2, generated=1), Model())
    answered, scored = rows
    assert answered.nll == pytest.approx(0.5)
    assert answered.nll_sum / answered.completion_tokens == answered.nll
    assert (answered.thought, answered.answer) == ("Some thought.", "Rest and fluids.")
    assert (answered.closed, answered.finished, answered.repeats) == (True, True, False)
    assert answered.language_match is True
    assert answered.thought_tokens + answered.answer_tokens == answered.tokens == 20
    assert scored.nll is not None
    assert scored.output is None


def test_batches_hold_prompts_of_like_length() -> None:
    model = Model()
    hold(suite_of(cases=100), model)
    lengths = [[len(p.text + p.completion) for p in batch] for batch in model.scored]
    assert len(lengths) > 1
    for longer, shorter in pairwise(lengths):
        assert min(longer) >= max(shorter) - 1  # a digit more in the question


def test_an_unclosed_thought_has_no_answer() -> None:
    rows, _ = hold(suite_of(cases=1, generated=1), Model(letter_sayer("Answer: B", False)))
    assert (rows[0].closed, rows[0].answer) == (False, "")
    assert rows[0].thought == "Answer: B"


def test_a_chinese_question_answered_in_english_is_noticed() -> None:
    config = make_config("demo", {"language": "zh", "generate_samples": 1})
    exam = make_suite(config, [case(1, language="zh")], None, {})
    rows, _ = hold(exam, Model())
    assert rows[0].language_match is False


def test_the_fixed_question_is_answered_and_its_claims_checked() -> None:
    fixed = case(7, claims=(Claim("rest", ("rest",), ("run",)),), reference="Rest.")
    for said, passed in (("Rest.", True), ("Run.", False), ("Hm.", False)):
        model = Model(letter_sayer(f"t</think>{said}"))
        rows, _ = hold(suite_of(fixed=fixed), model)
        assert rows[0].kind == "fixed"
        assert rows[0].correct is passed


# --- multiple choice -------------------------------------------------------------------------


def test_the_likeliest_option_is_the_choice() -> None:
    rows, _ = hold(suite_of(questions=6), Model())
    assert [row.choice for row in rows] == ["B"] * 6
    assert [row.correct for row in rows] == [n % 3 == 1 for n in range(6)]
    assert rows[0].option_losses == {"A": 2.0, "B": 1.0, "C": 3.0}
    assert rows[0].prompt == choice_cue(question(0))


@pytest.mark.parametrize(
    ("output", "finished", "choice", "correct", "unparsed", "unfinished"),
    [
        ("t</think>Answer: B", True, "B", True, False, False),
        ("t</think>Answer: A", True, "A", False, False, False),
        ("t</think>Hard to say.", True, None, False, True, False),
        ("t</think>Answer: B or C", True, None, False, True, False),
        ("t</think>Answer: B", False, "B", False, False, True),
        ("The answer is B", True, None, False, True, False),
        ("The answer is B. </think>", True, None, False, True, False),
        ("", True, None, False, True, False),
        ("thinking " * 50, False, None, False, False, True),
    ],
)
def test_only_a_finished_answer_that_states_the_letter_is_right(
    output: str, finished: bool, choice: str | None, correct: bool, unparsed: bool, unfinished: bool
) -> None:
    config = make_config("demo", {"mcq_method": "generate"})
    exam = make_suite(config, [], None, {"s": [question(1)]})
    (row,), _ = hold(exam, Model(letter_sayer(output, finished)))
    got = (row.choice, row.correct, row.unparsed, row.unfinished)
    assert got == (choice, correct, unparsed, unfinished)


def test_unreadable_answers_are_wrong_and_counted_apart() -> None:
    outputs = iter(
        [
            Generation("t</think>Answer: A", 9, True),
            Generation("t</think>Who knows", 9, True),
            Generation("t</think>Answer: C", 9, False),
        ]
    )
    exam = suite_of(questions=3, method="generate")
    rows, _ = hold(exam, Model(lambda prompt: next(outputs)))
    mcq = summarise(rows, exam).mcq
    assert mcq is not None
    assert (mcq.accuracy, mcq.n) == (pytest.approx(1 / 3), 3)
    assert (mcq.unparsed, mcq.unfinished) == (1, 1)


# --- going on where it was -------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_rows(method: str) -> None:
    exam = suite_of(cases=50, generated=20, questions=70, method=method, fixed=case(99))
    whole, saved = hold(exam, Model())
    for kept in (0, 1, 17, 60, len(saved) - 1):
        on_disk: list[ScoredRow] = []

        def save(row: ScoredRow, kept: int = kept, on_disk: list[Any] = on_disk) -> None:
            if len(on_disk) == kept:
                raise Killed
            on_disk.append(row)

        with pytest.raises(Killed):
            evaluate(exam, Model().tools(), [], save)
        model = Model()
        rows, added = hold(exam, model, on_disk)
        assert rows == whole
        assert len(on_disk) + len(added) == len(whole)
        asked = {one for batch in [*model.scored, *model.compared] for one in batch}
        assert len(asked) <= len(added) + 32  # at most the batch that was cut


def test_nothing_is_asked_again_when_all_is_there() -> None:
    exam = suite_of(cases=5, generated=2, questions=5)
    rows, _ = hold(exam, Model())
    model = Model()
    again, added = hold(exam, model, rows)
    assert (again, added) == (rows, [])
    assert model.generated + model.scored + model.compared == []


def test_rows_of_another_suite_are_passed_over() -> None:
    rows, _ = hold(suite_of(cases=9), Model())
    again, added = hold(suite_of(cases=3, questions=2), Model(), rows)
    assert [row.id for row in again] == ["c0", "c1", "c2", "q0", "q1"]
    assert len(added) == 2


def test_a_kill_loses_at_most_one_batch() -> None:
    """What a batch computed is saved before the next begins."""
    exam, model, saved = suite_of(cases=100), Model(), list[Any]()
    seen: list[int] = []
    tools = ModelTools(
        model.generate,
        lambda asked: (seen.append(len(saved)), model.score(asked))[1],
        model.score_options,
        last_turn(),
    )
    evaluate(exam, tools, [], saved.append)
    assert seen == [0, 32, 64, 96]


def test_answers_are_handed_over_and_kept_in_batches_of_the_model() -> None:
    exam, model, saved = suite_of(cases=20, generated=20), Model(), list[Any]()
    seen: list[tuple[int, int]] = []
    tools = ModelTools(
        lambda asked: (seen.append((len(asked), len(saved))), model.generate(asked))[1],
        model.score,
        model.score_options,
        last_turn(),
        answers_at_once=8,
    )
    evaluate(exam, tools, [], saved.append)
    assert seen == [(8, 0), (8, 8), (4, 16)]


def test_progress_counts_up_to_the_whole() -> None:
    heard: list[tuple[int, int]] = []
    exam = suite_of(cases=40, questions=40)
    evaluate(exam, Model().tools(), [], lambda row: None, lambda d, t: heard.append((d, t)))
    assert heard[-1] == (80, 80)
    assert heard == sorted(heard)


def test_rows_from_elsewhere_follow_those_that_were_asked() -> None:
    exam = suite_of(cases=3)
    rows, _ = hold(exam, Model())
    gone = replace(rows[0], kind="mcq", set="no longer asked", id="0", correct=True)
    other = replace(gone, set="a task", metric="acc")
    ordered, missing = order_rows([gone, other, rows[2], rows[0]], exam)
    assert [row.id for row in ordered] == ["c0", "c2", "0"]
    assert missing == 1


# --- summary ---------------------------------------------------------------------------------


def test_mean_loss_is_per_token_not_per_row() -> None:
    losses = iter([[TokenLoss(10.0, 10), TokenLoss(300.0, 100)]])
    exam = suite_of(cases=2)
    tools = ModelTools(lambda p: [], lambda p: next(losses), lambda i: [], last_turn())
    rows = evaluate(exam, tools, [], lambda row: None)
    assert summarise(rows, exam).nll == pytest.approx(310 / 110)


def test_truncated_answers_are_counted() -> None:
    outputs = iter([Generation(CLOSED, 20, True), Generation("cut", 160, False)])
    exam = suite_of(cases=2, generated=2)
    rows, _ = hold(exam, Model(lambda prompt: next(outputs)))
    summary = summarise(rows, exam)
    assert (summary.truncated, summary.generated) == (1, 2)
    assert (summary.closed_rate, summary.finished_rate) == (0.5, 0.5)


def test_what_was_not_asked_has_no_value() -> None:
    rows, _ = hold(suite_of(cases=1), Model())
    summary = summarise(rows, suite_of(cases=1))
    assert summary.closed_rate is None
    assert summary.mcq is None
    assert summarise([], suite_of()).nll is None
