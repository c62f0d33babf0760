from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcot.data.prompts import (
    CLOSE,
    OPEN,
    ask,
    ask_choice,
    parse,
    parse_growing,
    render,
)
from medcot.errors import InputError
from medcot.records import Question, Reply, Turn
from tests.support.fakes import make_case

TEXT = (
    st.text(min_size=1)
    .map(str.strip)
    .filter(lambda text: text and OPEN not in text and CLOSE not in text)
)


def user_turn(turns, *, thinks=True):
    return "".join(f"<{turn.role}>{turn.content}</{turn.role}>" for turn in turns) + "<assistant>"


@given(thought=TEXT, response=TEXT)
@pytest.mark.parametrize("style", ["tutorial", "chat"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_parse_inverts_render(style, language, thought, response):
    case = make_case(1, thought=thought, response=response, language=language)
    reply = parse(render(case, style, user_turn).completion)
    assert (reply.thought, reply.answer, reply.closed) == (thought, response, True)


@pytest.mark.parametrize("style", ["tutorial", "chat"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_inference_sees_the_prompt_that_training_saw(style, language):
    case = make_case(1, language=language)
    assert render(case, style, user_turn).text == ask(case.question, style, language, user_turn)


def opened(turns, *, thinks=True):
    return f"{user_turn(turns)}\n<think>\n"


def test_the_prompt_ends_in_an_open_thought_once():
    assert ask("Why?", "chat", "en", opened).count(OPEN) == 2
    assert ask("Why?", "chat", "en", user_turn).endswith(f"{OPEN}\n")


@given(response=TEXT)
@pytest.mark.parametrize("style", ["tutorial", "chat"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_without_a_thought_none_is_asked_for_or_trained(style, language, response):
    case = make_case(1, thought="", response=response, language=language)
    pair = render(case, style, user_turn)
    asked = ask(case.question, style, language, user_turn, thinks=False)
    assert pair.text == asked
    assert OPEN not in asked
    assert not any(word in asked for word in ("step by step", "in steps", "一步一步", "逐步"))
    assert pair.completion == response
    assert parse(pair.completion, thinks=False) == Reply("", response, closed=True)


def test_a_thought_that_the_template_opens_is_closed_where_none_is_wanted():
    assert ask("Why?", "chat", "en", opened, thinks=False).endswith(f"{OPEN}\n\n{CLOSE}\n\n")


def test_a_thought_that_nobody_asked_for_is_no_answer():
    assert parse("<think>Hm.</think>Yes.", thinks=False) == Reply("Hm.", "Yes.", closed=True)
    assert parse("<think>Hm.", thinks=False) == Reply("Hm.", "", closed=False)
    growing = [parse_growing("<think> Hm.</think>Yes."[:n], thinks=False) for n in range(1, 24)]
    assert {reply.answer for reply in growing} == {"", "Y", "Ye", "Yes", "Yes."}


def test_system_prompt_and_earlier_turns_come_before_the_question():
    turns = (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "You."))
    case = replace(make_case(1, question="Why?", thought=""), turns=turns)
    assert render(case, "chat", user_turn).text == (
        "<system>Be brief.</system><user>Who?</user><assistant>You.</assistant>"
        "<user>Why?</user><assistant>"
    )
    with pytest.raises(InputError, match=r"--style tutorial: row .* use --style chat"):
        render(case, "tutorial", user_turn)


def test_an_unclosed_thought_has_no_answer():
    reply = parse("I think, and think, the answer is B")
    assert (reply.answer, reply.closed) == ("", False)


def test_a_repeated_opening_tag_is_not_part_of_the_thought():
    assert parse("<think>\nfirst\n</think>\nthen") == parse("first</think>then")


def test_braces_in_a_question_are_left_alone():
    assert "{x} and {question}" in ask("{x} and {question}", "tutorial", "en")


def test_chat_style_needs_a_template():
    with pytest.raises(ValueError, match="chat template"):
        ask("Why?", "chat", "en")


def test_the_context_of_a_question_comes_before_it():
    question = Question("q", "Does it?", {"A": "yes", "B": "no"}, "A", context="We studied it.")
    prompt = ask_choice(question, "tutorial")
    assert prompt.index("We studied it.") < prompt.index("Does it?") < prompt.index("B. no")
