"""Sets that came after the training: questions that were trained on are left out, every one."""

from __future__ import annotations

from medcot.config.presets import make_config
from medcot.evaluation.decontaminate import collect_texts, decontaminate_rows, decontaminate_suite
from medcot.evaluation.interface import EvaluationSuite
from medcot.evaluation.scorers import make_row
from medcot.evaluation.suite import make_suite
from medcot.records import Case, Question

STEM = (
    "A 34-year-old man who keeps pigeons has had a dry cough and short breath for three months,"
    " worse on evenings after he has cleaned the loft. Which finding is expected?"
)
OPTIONS = {"A": "one", "B": "two"}


def case(case_id: str, question: str) -> Case:
    return Case(case_id, question, "thought", "response")


def suite_of(**sets: list[str]) -> EvaluationSuite:
    asked = {
        name: [Question(f"{name}-{n}", text, OPTIONS, "A") for n, text in enumerate(texts)]
        for name, texts in sets.items()
    }
    tests = [case("test-1", "What is tested here?")]
    return make_suite(make_config("demo"), tests, case("fixed", "And now?"), asked)


def test_every_question_that_a_trained_row_shares_is_left_out() -> None:
    exam = suite_of(
        one=["Why?", STEM, STEM.upper(), f"Read this. {STEM}", "What else?"], two=["How?", "Why?"]
    )
    kept, leaks = decontaminate_suite(
        exam, [case("row-1", STEM), case("row-2", "why"), case("row-3", "No.")]
    )
    assert {name: [q.id for q in asked] for name, asked in kept.questions.items()} == {
        "one": ["one-4"],
        "two": ["two-0"],
    }
    assert sorted(leak.evaluation_id for leak in leaks) == [
        "one-0",
        "one-1",
        "one-2",
        "one-3",
        "two-1",
    ]
    assert (kept.cases, kept.fixed) == (exam.cases, exam.fixed)


def test_a_set_of_which_nothing_is_left_is_not_asked() -> None:
    kept, leaks = decontaminate_suite(suite_of(one=["Why?"], two=["How?"]), [case("row", "Why?")])
    assert (list(kept.questions), len(leaks)) == (["two"], 1)


def test_before_the_training_nothing_is_left_out() -> None:
    exam = suite_of(one=["Why?"])
    assert decontaminate_suite(exam, []) == (exam, ())


def test_rows_of_other_harnesses_are_left_out_by_their_prompts() -> None:
    exam = suite_of(one=["Why?"])
    rows = [
        make_row("mcq", "task", "0", f"Question: {STEM}\nA. one\nB. two\nAnswer:"),
        make_row("mcq", "task", "1", "Question: Something else?\nAnswer:"),
        make_row("mcq", "one", "one-0", STEM),  # asked by us: looked at before
        make_row("case", "", "test-1", STEM),
    ]
    kept, leaks = decontaminate_rows(rows, exam, [case("row", STEM)])
    assert [row.id for row in kept] == ["1", "one-0", "test-1"]
    assert [(leak.set_name, leak.evaluation_id) for leak in leaks] == [("task", "0")]


def test_texts_name_each_part_of_the_suite() -> None:
    texts = collect_texts(suite_of(one=["Why?"]))
    assert texts == {
        "test rows": [("test-1", "What is tested here?")],
        "fixed question": [("fixed", "And now?")],
        "one": [("one-0", "Why?")],
    }
