"""The bundled samples: enough of them, well formed, and none of the questions is given away."""

import json
from collections import Counter
from importlib.resources import files

import pytest

from medcot.config.presets import make_config
from medcot.data.contamination import find_overlaps
from medcot.data.dataset import load_dataset, load_fixed_question, load_questions


@pytest.mark.parametrize(("language", "least"), [("en", 64), ("zh", 32)])
def test_there_are_enough_cases_of_many_specialties(language, least):
    dataset = load_dataset(make_config("demo", {"language": language}))
    assert len(dataset.cases) >= least
    assert not dataset.dropped
    assert dataset.synthetic
    assert any("not clinically reviewed" in note for note in dataset.notes)
    assert len({case.specialty for case in dataset.cases}) >= 20
    assert all(case.language == language for case in dataset.cases)


@pytest.mark.parametrize(
    ("language", "shortest", "longest"), [("en", 1500, 3000), ("zh", 550, 1100)]
)
def test_thoughts_have_the_length_of_the_real_rows(language, shortest, longest):
    cases = load_dataset(make_config("demo", {"language": language})).cases
    assert all(shortest <= len(case.thought) <= longest for case in cases)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_questions_have_one_right_letter_and_no_favourite(language):
    questions = load_questions("sample", language).questions
    assert len(questions) >= 24
    letters = Counter(question.answer for question in questions)
    assert max(letters.values()) <= 8
    assert any(question.context for question in questions)
    name = f"samples/questions_{language}.jsonl"
    for line in (files("medcot.data") / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["answer"] == row["options"][row["answer_idx"]]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_question_is_among_the_cases(language):
    cases = load_dataset(make_config("demo", {"language": language})).cases
    fixed = load_fixed_question(language)
    questions = [(q.id, q.question) for q in load_questions("sample", language).questions]
    assert not find_overlaps(cases, {"mcq": questions, "fixed": [(fixed.id, fixed.question)]})
