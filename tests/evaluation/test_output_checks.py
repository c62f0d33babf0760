"""Loops, language and the division of a reply's tokens."""

from __future__ import annotations

import random

import pytest

from medcot.evaluation.output_checks import divide_tokens, has_loop, is_in_language

SENTENCE = "The patient has a fever and a cough, so pneumonia is likely. "
PARAGRAPH = (
    "First, the history points to the heart: pain on effort that eases at rest. Second, the risk is"
    " high, as she smokes and her father died early. Third, the ECG shows ST depression. "
)


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE * 3,
        "Let me think. " + SENTENCE * 5,
        SENTENCE * 4 + "That is all.",
        PARAGRAPH * 3,
        "no no no " * 20,
        "1. Rest\n2. Fluids\n" * 6,
        "考虑急性胰腺炎，需要完善检查以明确诊断。" * 5,
        "好的" * 60,
        "\n\n".join([PARAGRAPH] * 4),
        "a" * 200,
        "".join(f"Step {number}: List the tests. The Q-tip test. " for number in (5, 6, 17)),
    ],
)
def test_a_passage_three_times_in_a_row_is_a_loop(text: str) -> None:
    assert has_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Rest.",
        SENTENCE * 2,
        PARAGRAPH * 2,
        "ha ha ha ha",
        "| a | b |\n|----------------------------------------------------------|\n| 1 | 2 |",
        "=" * 100,
        "Answer: B. Answer: B. Answer: B.",
        "1. Rest\n2. Fluids\n3. Oxygen\n4. Antibiotics\n5. Review in two days\n6. Chest film",
        "Fever suggests infection. Cough suggests the chest. Fever with cough suggests pneumonia.",
    ],
)
def test_what_comes_twice_or_is_short_is_no_loop(text: str) -> None:
    assert not has_loop(text)


def test_varied_text_is_no_loop_however_long() -> None:
    chance = random.Random(3)
    words = [
        "fever",
        "cough",
        "pain",
        "rest",
        "fluid",
        "heart",
        "lung",
        "liver",
        "acute",
        "chronic",
        "mild",
        "severe",
    ]
    assert not any(has_loop(" ".join(chance.choices(words, k=1500))) for _ in range(3))


@pytest.mark.parametrize(
    ("text", "language", "matches"),
    [
        ("Rest and fluids.", "en", True),
        ("休息并补液。", "zh", True),
        ("休息并补液。", "en", False),
        ("Rest and fluids.", "zh", False),
        ("考虑COPD急性加重，予NIPPV治疗，复查ABG。", "zh", True),
        ("The term 气虚 (qi deficiency) is used here.", "en", True),
        ("", "en", False),
        ("120/80", "zh", False),
    ],
)
def test_language_is_told_by_characters_against_words(
    text: str, language: str, matches: bool
) -> None:
    assert is_in_language(text, language) is matches  # type: ignore[arg-type]


def test_tokens_of_a_reply_are_divided_and_none_is_lost() -> None:
    assert divide_tokens(100, "x" * 300, "y" * 100) == (75, 25)
    assert divide_tokens(7, "", "") == (7, 0)
    assert divide_tokens(9, "", "answer") == (0, 9)
    assert sum(divide_tokens(101, "abc", "defgh")) == 101
