"""The bundled samples: enough of them, well formed, and none of the questions is given away."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from medcot.config.presets import make_config
from medcot.data.contamination import find_overlaps
from medcot.data.dataset import load_dataset, load_fixed_question, load_questions
from medcot.data.fast_tokenizer import load_fast_tokenizer
from medcot.data.sources import SAMPLES, sample_files
from medcot.engines.bundled_model import bundled_model


def samples(name, language):
    return load_dataset(make_config("demo", {"dataset": name, "language": language}))


def file_of(name, language):
    (path,) = sample_files(SAMPLES[name], language)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "language", "least"),
    [
        ("sample", "en", 64),
        ("sample", "zh", 32),
        ("sample-short", "en", 96),
        ("sample-short", "zh", 48),
    ],
)
def test_there_are_enough_cases_of_many_specialties(name, language, least):
    dataset = samples(name, language)
    assert len(dataset.cases) >= least
    assert len({case.id for case in dataset.cases}) == len(dataset.cases)
    assert not dataset.dropped
    assert dataset.synthetic
    assert any("not clinically reviewed" in note for note in dataset.notes)
    assert len({case.specialty for case in dataset.cases}) >= 20
    assert all(case.language == language for case in dataset.cases)


@pytest.mark.parametrize(
    ("language", "shortest", "longest"), [("en", 1500, 3000), ("zh", 550, 1100)]
)
def test_thoughts_have_the_length_of_the_real_rows(language, shortest, longest):
    cases = samples("sample", language).cases
    assert all(shortest <= len(case.thought) <= longest for case in cases)


@pytest.mark.parametrize(
    ("language", "longest"),
    [("en", (80, 60, 120)), ("zh", (120, 95, 210))],
)
def test_short_cases_are_short_in_the_demo_models_tokens(language, longest):
    """So that ten thousand tokens are fifty rows, and an answer of 160 tokens closes its thought.

    The model's vocabulary is English: a Chinese character takes one token or two.
    """
    tokenizer = load_fast_tokenizer(bundled_model())
    for case in samples("sample-short", language).cases:
        thought, answer = (
            len(tokenizer(text, add_special_tokens=False).input_ids)
            for text in (case.thought, case.response)
        )
        sizes = (thought, answer, thought + answer)
        assert all(map(int.__le__, sizes, longest)), (case.id, sizes)
        assert min(thought, answer) >= 20, case.id


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_short_case_is_plain_text_in_its_language(language):
    for line in file_of("sample-short", language).splitlines():
        row = json.loads(line)
        assert row["lang"] == language
        for column in ("Question", "Complex_CoT", "Response"):
            text = row[column]
            assert text == text.strip()
            assert not re.search(r"</?\w|\s\s|\n|\*\*|https?:", text), (row["id"], text)
            chinese = len(re.findall(r"[\u4e00-\u9fff]", text))
            assert chinese > len(text) / 4 if language == "zh" else not chinese, row["id"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_short_and_long_cases_have_no_question_in_common(language):
    long = [(case.id, case.question) for case in samples("sample", language).cases]
    assert not find_overlaps(samples("sample-short", language).cases, {"sample": long})


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


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_question_is_among_the_cases(name, language):
    cases = samples(name, language).cases
    fixed = load_fixed_question(language)
    questions = [(q.id, q.question) for q in load_questions("sample", language).questions]
    assert not find_overlaps(cases, {"mcq": questions, "fixed": [(fixed.id, fixed.question)]})
