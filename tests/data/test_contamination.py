"""Which training rows count as leaks, against a slow and plain count of the same thing."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcot.config.presets import make_config
from medcot.data import contamination
from medcot.data.contamination import LEAST_SHARE, WINDOW, Overlap, find_overlaps
from medcot.data.dataset import load_dataset, split_cases
from medcot.data.mcq import load_questions
from medcot.data.text import normalise
from medcot.records import Case

LONG = (
    "A 61-year-old woman with long-standing diabetes comes to the clinic with numb feet, a wound"
    " at her left heel that has not closed in six weeks, and no palpable pedal pulses."
)
OTHER = (
    "What is the best first step for a boy of four who swallowed a button battery an hour ago,"
    " drools, refuses to drink, and has a round shadow with a double rim on the radiograph?"
)


def case(question: str, case_id: str = "c") -> Case:
    return Case(case_id, question, "thought", "response")


def leaks_of(question: str, *evaluated: str) -> list[Overlap]:
    pairs = [(f"e{number}", text) for number, text in enumerate(evaluated)]
    return find_overlaps([case(question)], {"set": pairs})


def plain_share(one: str, other: str) -> float:
    """The same measure, letter by letter."""
    one, other = normalise(one), normalise(other)
    if len(one) < WINDOW or len(other) < WINDOW:
        return 0.0
    known = {other[at : at + WINDOW] for at in range(len(other) - WINDOW + 1)}
    covered: set[int] = set()
    for at in range(len(one) - WINDOW + 1):
        if one[at : at + WINDOW] in known:
            covered.update(range(at, at + WINDOW))
    return min(1.0, len(covered) / min(len(one), len(other)))


def test_the_same_question_leaks_however_it_is_spaced_and_punctuated() -> None:
    (leak,) = leaks_of("Why?? Me", "  WHY me!")
    assert leak == Overlap("c", "set", "e0", "same question", 1.0)


def test_a_question_inside_a_longer_one_leaks() -> None:
    (leak,) = leaks_of(f"{OTHER} {LONG}", LONG)
    assert (leak.kind, leak.share) == ("shared text", 1.0)
    (leak,) = leaks_of(LONG, f"{OTHER} {LONG}")
    assert (leak.kind, leak.share) == ("shared text", 1.0)


def test_two_questions_that_share_only_a_phrase_do_not_leak() -> None:
    phrase = " Which of the following is the most likely diagnosis in this patient?"
    assert not leaks_of(LONG + phrase, OTHER + phrase)
    assert not leaks_of("Which of the following is the most likely cause?", OTHER)


@pytest.mark.parametrize(("shared", "leaks"), [(63, False), (64, True), (80, True)])
def test_a_shared_stretch_counts_from_64_characters_on(shared: int, leaks: bool) -> None:
    text = normalise(LONG)[:shared].strip().ljust(shared, "x")
    question, evaluated = text + "a" * (100 - shared), text + "b" * (100 - shared)
    assert bool(leaks_of(question, evaluated)) is leaks


def test_less_than_half_of_the_shorter_question_is_no_leak() -> None:
    shared = "s" + normalise(LONG)[:69]
    for rest, leaks in ((70, True), (72, False)):
        found = leaks_of(shared + "q" * rest, "z" * 400 + shared + "z" * 400)
        assert bool(found) is leaks, rest


def test_chinese_questions_leak_whatever_their_spacing() -> None:
    text = "患者，男，四十五岁。" + "".join(chr(0x4E00 + number) for number in range(80))
    (leak,) = leaks_of(text.replace("，", " , "), "前言：" + text + "请问下一步？")
    assert leak.kind == "shared text"


def test_every_set_is_named_once_by_its_worst_hit() -> None:
    sets = {
        "a": [("a1", OTHER), ("a2", f"{LONG[:120]} and more of it"), ("a3", LONG)],
        "b": [("b1", f"Intro. {LONG}")],
        "c": [("c1", OTHER)],
    }
    found = find_overlaps([case(LONG, "x"), case("Something else entirely?", "y")], sets)
    assert [(leak.case_id, leak.set_name, leak.evaluation_id) for leak in found] == [
        ("x", "a", "a3"),
        ("x", "b", "b1"),
    ]


@pytest.mark.parametrize(
    "evaluated", [{}, {"set": []}, {"set": [("e", "")]}, {"set": [("e", "?")]}]
)
def test_nothing_to_compare_with_is_no_leak(evaluated: dict[str, list[tuple[str, str]]]) -> None:
    assert find_overlaps([case(LONG), case("short")], evaluated) == []
    assert find_overlaps([], evaluated) == []


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(1, 6))
def test_finds_what_a_plain_count_finds(dice: random.Random, cases: int, texts: int) -> None:
    pieces = ["".join(dice.choices("abc ", k=dice.randint(30, 120))) for _ in range(5)]
    questions = ["".join(dice.choices(pieces, k=dice.randint(1, 4))) for _ in range(cases + texts)]
    train, evaluated = questions[:cases], questions[cases:]
    found = find_overlaps(
        [case(text, str(number)) for number, text in enumerate(train)],
        {str(number): [("e", text)] for number, text in enumerate(evaluated)},
    )
    expected = {
        (str(i), str(j))
        for i, one in enumerate(train)
        for j, other in enumerate(evaluated)
        if normalise(other)
        and (normalise(one) == normalise(other) or plain_share(one, other) >= LEAST_SHARE)
    }
    assert {(leak.case_id, leak.set_name) for leak in found} == expected


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(f"{number} {LONG if number % 3 else OTHER}", str(number)) for number in range(9)]
    sets = {"set": [("e", LONG)]}
    whole = find_overlaps(cases, sets)
    monkeypatch.setattr(contamination, "CHUNK", 1)
    assert find_overlaps(cases, sets) == whole
    assert {leak.case_id for leak in whole} == {"1", "2", "4", "5", "7", "8"}


def test_a_phrase_that_all_share_does_not_make_the_work_grow_with_the_pairs() -> None:
    dice = random.Random(1)
    phrase = "Which of the following is the most appropriate next step in management of this case?"

    def questions(count: int) -> list[str]:
        return ["".join(dice.choices("abcdefgh ", k=150)) + phrase for _ in range(count)]

    def seconds(count: int) -> float:
        cases = [case(text, str(number)) for number, text in enumerate(questions(count))]
        sets = {"set": [(str(number), text) for number, text in enumerate(questions(count))]}
        start = time.process_time()
        assert not find_overlaps(cases, sets)
        return time.process_time() - start

    small = min(seconds(1000) for _ in range(3))
    assert min(seconds(4000) for _ in range(3)) < 8 * max(small, 0.05)  # 16 if it were quadratic


def test_real_sets_do_not_leak_into_real_rows_but_a_planted_row_does(dev_data: Path) -> None:
    config = make_config("demo", {"dataset": str(dev_data / "cot_en.jsonl"), "samples": 400})
    cases = load_dataset(config).cases
    chosen = set(split_cases(cases, config).train)
    train = [case for case in cases if case.id in chosen]
    medqa = load_questions(str(dev_data / "mcq_medqa_en.jsonl"), "en").questions
    sets = {"medqa": [(question.id, question.question) for question in medqa]}
    planted = case("Please answer. " + medqa[7].question, "planted")
    found = find_overlaps([*train, planted], sets)
    assert [(leak.case_id, leak.evaluation_id) for leak in found] == [("planted", medqa[7].id)]
