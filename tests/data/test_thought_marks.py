"""Chats that think differently: what their templates write around a thought is found out."""

import pytest

from medcot.data.chat_templates import render_conversation
from medcot.data.prompts import ask, close_thought, parse, parse_growing, render
from medcot.data.tokenization import check_labels, encode
from medcot.errors import RunFailed
from medcot.evaluation.answer_extraction import extract_letter
from medcot.records import Reply
from tests.support.fakes import make_case, make_small_tokenizer

TURNS = "{% for turn in messages %}<|start|>{{ turn.role }}<|message|>{{ turn.content }}<|end|>"
CHANNELS = TURNS + "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
SHUT = (
    TURNS + "{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n"
    "{% else %}<think>\n\n</think>\n\n{% endif %}"
)
# Jinja drops a line break at a template's end.
OPENED = TURNS + "{% endfor %}{{ '<|im_start|>assistant\n<think>\n' }}"
PLAIN = TURNS + "{% endfor %}{{ '<|im_start|>assistant\n' }}"
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


def chat_of(template):
    def chat(turns, *, thinks=None):
        return render_conversation(template, turns, {}, thinks=thinks)

    return chat


@pytest.mark.parametrize("template", [SHUT, OPENED, PLAIN], ids=["shut", "opened", "plain"])
def test_a_prompt_ends_with_one_opened_thought(template):
    prompt = ask("Why?", "chat", "en", chat_of(template))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert prompt.count("assistant\n<think>") == 1
    assert "</think>" not in prompt
    plain = ask("Why?", "chat", "en", chat_of(template), thinks=False)
    assert plain.endswith(("<|im_start|>assistant\n", "</think>\n\n"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_chat_with_channels_thinks_in_its_own(language):
    case = make_case(1, language=language)
    pair = render(case, "chat", chat_of(CHANNELS))
    assert pair.text.endswith(f"<|start|>assistant{ANALYSIS}")
    assert "<think>" not in pair.text + pair.completion
    assert pair.completion == f"{case.thought}{FINAL}{case.response}"
    assert parse(pair.completion) == Reply(case.thought, case.response, closed=True)
    plain = render(make_case(1, thought="", language=language), "chat", chat_of(CHANNELS))
    assert plain.text.endswith("<|start|>assistant<|channel|>final<|message|>")
    assert plain.completion == case.response
    assert close_thought(pair.text, "So.") == f"{pair.text}So.{FINAL}"


def test_an_answer_in_a_channel_is_read_as_any_other():
    options = {"A": "Iron", "B": "Zinc"}
    said = f"{ANALYSIS}Not A. Answer: A{FINAL}Answer: B"
    assert parse(said) == Reply("Not A. Answer: A", "Answer: B", closed=True)
    assert extract_letter(said, options, "en") == "B"
    assert extract_letter(f"{ANALYSIS}Answer: A", options, "en") is None
    assert parse(said, thinks=False).answer == "Answer: B"
    assert parse(f"{ANALYSIS}Not yet") == Reply("Not yet", "", closed=False)


def test_a_growing_answer_in_a_channel_shows_no_part_of_a_mark():
    whole = f"A cough.{FINAL}Flu."
    seen = [parse_growing(whole[:length]) for length in range(1, len(whole) + 1)]
    assert {one.thought for one in seen} <= {"A cough."[:n].strip() for n in range(9)}
    assert seen[-1] == Reply("A cough.", "Flu.", closed=True)


def test_the_gate_wants_the_end_that_the_prompts_thought_has():
    case = make_case(1)
    tokenizer = make_small_tokenizer([case])
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|start|>", "<|end|>", "<|message|>", "<|channel|>"]}
    )
    rows = encode(tokenizer, {"1": render(case, "chat", chat_of(CHANNELS))})
    check_labels(tokenizer, [rows[0].as_row()["labels"]], rows)
    tagged = encode(tokenizer, {"1": render(case, "chat", chat_of(PLAIN))})[0]
    mixed = [type(tagged).of("1", rows[0].prompt_ids, tagged.completion_ids)]
    with pytest.raises(RunFailed, match=r"final.*is missing"):
        check_labels(tokenizer, [mixed[0].as_row()["labels"]], mixed)
