import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcot.data.prompts import (
    CLOSE,
    OPEN,
    ask,
    ask_choice,
    parse,
    render,
)
from medcot.records import Question
from tests.support.fakes import make_case

TEXT = (
    st.text(min_size=1)
    .map(str.strip)
    .filter(lambda text: text and OPEN not in text and CLOSE not in text)
)


def user_turn(message):
    return f"<user>{message}</user><assistant>"


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


def test_the_prompt_ends_in_an_open_thought_once():
    assert ask("Why?", "chat", "en", lambda m: f"{m}\n<think>\n").count(OPEN) == 2
    assert ask("Why?", "chat", "en", user_turn).endswith(f"{OPEN}\n")


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
