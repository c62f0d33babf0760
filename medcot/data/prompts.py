"""Defines the text format of a row: :func:`render` writes it, :func:`parse` reads it.

No other module knows the format. Both styles produce two strings, so that only the completion is
trained on. The models' own chat templates are used for the user's turn only: the R1-Distill
template deletes the chain of thought from an assistant's turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from medcot.errors import InputError
from medcot.records import Case, Language, Prompt, Question, Reply, Style, Turn

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """What a model's chat writes around a thought.

    ``opens`` ends the prompt, ``closes`` stands between thought and answer, ``skips`` ends the
    prompt where no thought is wanted.
    """

    opens: str
    closes: str
    skips: str = ""


TAGS = ThoughtMarks(f"{OPEN}\n", f"\n{CLOSE}\n\n")
CHANNELS = ThoughtMarks(
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|channel|>final<|message|>",
)
"""Those of gpt-oss, whose turns name a channel each."""
MARK_TOKENS = (OPEN, CLOSE, "<|start|>", "<|end|>", "<|channel|>", "<|message|>")
"""What of these may be tokens of a model, which programs leave out of a text unless they are told.
"""
_CHANNEL_TURN = "<|start|>assistant"
"""What a template of such a chat ends with."""
CLOSINGS = re.compile(f"{re.escape(CLOSE)}|{re.escape(CHANNELS.closes)}")
"""What ends a thought, of whatever chat."""
_OPENINGS = (OPEN, CHANNELS.opens)
_EMPTY_THOUGHT = re.compile(rf"{OPEN}\s*{CLOSE}\s*$")


class ChatTemplate(Protocol):
    """Turns a conversation into the model's prompt, up to the assistant's turn."""

    def __call__(self, turns: Sequence[Turn], *, thinks: bool | None = None) -> str:
        """Return the prompt of ``turns``, the last one the user's.

        A template that can is told whether a thought is wanted; None leaves that to it.
        """
        ...


_TUTORIAL = {
    "en": (
        "You are given a task together with a question. Write a response that completes the task."
        " Think the question through in steps first, so that the response rests on sound"
        " reasoning.\n\n### Instruction:\nYou are a physician with experience in clinical"
        " reasoning, diagnosis and treatment. Answer the medical question below.\n\n"
        "### Question:\n{question}\n\n### Response:\n"
    ),
    "zh": (
        "下面是一项任务和一个相关的问题。请写出能完成该任务的回答。作答之前，先一步一步地思考，"
        "使回答建立在可靠的推理之上。\n\n### 任务：\n你是一位在临床推理、诊断和治疗方面"
        "经验丰富的医生。请回答下面的医学问题。\n\n### 问题：\n{question}\n\n### 回答：\n"
    ),
}

_TUTORIAL_PLAIN = {
    "en": (
        "You are given a task together with a question. Write a response that completes the task."
        "\n\n### Instruction:\nYou are a physician with experience in clinical reasoning, diagnosis"
        " and treatment. Answer the medical question below.\n\n"
        "### Question:\n{question}\n\n### Response:\n"
    ),
    "zh": (
        "下面是一项任务和一个相关的问题。请写出能完成该任务的回答。\n\n### 任务：\n"
        "你是一位在临床推理、诊断和治疗方面经验丰富的医生。请回答下面的医学问题。\n\n"
        "### 问题：\n{question}\n\n### 回答：\n"
    ),
}
"""The tutorial's prompt for data without thoughts."""

_CHAT = {
    "en": "{question}\n\nThink step by step inside <think> tags, then give your answer.",
    "zh": "{question}\n\n请先在 <think> 标签内逐步思考，然后用中文给出答案。",
}

_CHANNEL_CHAT = {
    "en": "{question}\n\nThink step by step, then give your answer.",
    "zh": "{question}\n\n请先逐步思考，然后用中文给出答案。",
}
"""The same for a chat whose thoughts have a channel."""

_LETTER = {
    "en": "End with one line: Answer: followed by the letter of the right option.",
    "zh": "最后单独一行写出：答案：正确选项的字母。",
}

_OPTION_CUE = {"en": "Answer:", "zh": "答案："}


def render(case: Case, style: Style, chat: ChatTemplate | None = None) -> Prompt:
    """Return a case's training pair; ``parse(render(case).completion)`` recovers its parts.

    Raises:
        InputError: ``tutorial`` style for a case with a system prompt or earlier turns.
    """
    if style == "tutorial" and case.turns:
        got = f"row {case.id} has a system prompt or earlier turns, which this style cannot hold"
        raise InputError("--style tutorial", got, "use --style chat")
    thinks = bool(case.thought)
    text = ask(case.question, style, case.language, chat, thinks=thinks, turns=case.turns)
    answer = case.response.strip()
    if not thinks:
        return Prompt(text, answer)
    return Prompt(text, f"{case.thought.strip()}{find_marks(text).closes}{answer}")


def ask(
    question: str,
    style: Style,
    language: Language,
    chat: ChatTemplate | None = None,
    *,
    thinks: bool = True,
    turns: Sequence[Turn] = (),
) -> str:
    """Return the inference prompt: everything up to and including the opened thought.

    Args:
        thinks: Whether to ask for a thought. Without one, a thought that the model's template
            opens is closed at once.
        turns: What comes before the question; only the ``chat`` style has a place for it.

    Raises:
        ValueError: ``chat`` style without the model's template.
    """
    question = question.strip()
    if style == "tutorial":
        if not thinks:
            return _TUTORIAL_PLAIN[language].replace("{question}", question)
        return _TUTORIAL[language].replace("{question}", question) + f"{OPEN}\n"
    if chat is None:
        raise ValueError("chat style needs the model's chat template")
    message = _CHAT[language].replace("{question}", question) if thinks else question
    turn = chat([*turns, Turn("user", message)], thinks=None if thinks else False)
    if turn.rstrip().endswith(_CHANNEL_TURN):
        if not thinks:
            return turn.rstrip() + CHANNELS.skips
        message = _CHANNEL_CHAT[language].replace("{question}", question)
        return chat([*turns, Turn("user", message)]).rstrip() + CHANNELS.opens
    if not thinks:
        return f"{turn.rstrip()}\n\n{CLOSE}\n\n" if turn.rstrip().endswith(OPEN) else turn
    if _EMPTY_THOUGHT.search(turn):
        # Some templates write an empty thought unless they are told that one is wanted.
        turn = _EMPTY_THOUGHT.sub("", chat([*turns, Turn("user", message)], thinks=True))
    return turn if turn.rstrip().endswith(OPEN) else f"{turn}{TAGS.opens}"


def find_marks(prompt: str) -> ThoughtMarks:
    """Return what is around the thought that ``prompt``, one of :func:`ask`, opens."""
    return CHANNELS if prompt.endswith(CHANNELS.opens) else TAGS


def opens_thought(prompt: str) -> bool:
    """Return whether a prompt ends inside a thought."""
    return prompt.rstrip().endswith(_OPENINGS)


def split_thought(text: str) -> tuple[str, bool, str]:
    """Split a model's output after its thought: the thought, whether it was closed, the rest.

    Without the end of a thought all of it comes first, whether it is a thought or not.
    """
    found = CLOSINGS.search(text)
    if found is None:
        return text, False, ""
    return text[: found.start()], True, text[found.end() :]


def answer_after_thought(text: str) -> str | None:
    """Return what an output says after its thought, all of it where it has none.

    A thought that never closes leaves None.
    """
    _, closed, answer = split_thought(text)
    if closed:
        return answer
    return None if any(opening in text for opening in _OPENINGS) else text


def ask_plainly(question: str, language: Language, chat: ChatTemplate | None = None) -> str:
    """Return the prompt of a question asked in the model's own way, without a word about thoughts.

    A thought that the model's template opens is closed at once. A model without a template is asked
    in the tutorial's style.
    """
    return ask(question, "chat" if chat else "tutorial", language, chat, thinks=False)


def ask_choice_plainly(question: Question, chat: ChatTemplate | None = None) -> str:
    """Return the prompt that asks for the letter of one option, as :func:`ask_plainly` asks."""
    stem = f"{choice_stem(question)}\n\n{_LETTER[question.language]}"
    return ask_plainly(stem, question.language, chat)


def close_thought(prompt: str, thought: str = "") -> str:
    """Return a prompt of :func:`ask` with ``thought``, or an empty one, written and closed."""
    if prompt.endswith(CHANNELS.opens):
        return f"{prompt}{thought.strip()}{CHANNELS.closes}"
    return f"{prompt.rstrip()}\n{thought.strip()}\n{CLOSE}"


def render_answer(case: Case, prompt: Prompt, thought: str) -> Prompt:
    """Return the case's answer alone as what is scored after ``prompt`` and a closed thought."""
    return Prompt(prompt.text, case.response.strip(), f"{thought.strip()}\n{CLOSE}\n\n")


def parse(output: str, *, thinks: bool = True) -> Reply:
    """Parse a continuation of :func:`ask`.

    The text before the first closing tag is the thought, the text after it the answer. Without a
    closing tag there is no answer: nothing is guessed. Where no thought was asked for, all of it is
    the answer, unless it begins with a thought.
    """
    text = output.strip()
    opened = text.startswith(_OPENINGS)
    if not thinks and not opened:
        return Reply("", text, closed=True)
    for opening in _OPENINGS:
        text = text.removeprefix(opening)
    thought, closed, answer = split_thought(text)
    return Reply(thought.strip(), answer.strip(), closed=closed)


def parse_growing(output: str, *, thinks: bool = True) -> Reply:
    """Parse a continuation that is still growing.

    The beginning of a mark is held back until it is whole, so that thought and answer only grow.
    """
    if any(opening.startswith(output.strip()) for opening in _OPENINGS):
        return Reply("", "", closed=not thinks)
    held = max(_count_begun(output, closing) for closing in (CLOSE, CHANNELS.closes))
    return parse(output[: len(output) - held], thinks=thinks)


def _count_begun(output: str, mark: str) -> int:
    """Return with how many characters of ``mark``, but not all, the output ends."""
    return next((n for n in range(len(mark) - 1, 0, -1) if output.endswith(mark[:n])), 0)


def ask_choice(
    question: Question, style: Style, chat: ChatTemplate | None = None, *, thinks: bool = True
) -> str:
    """Return the prompt that asks for reasoning, if any, and then the letter of one option."""
    asked = f"{choice_stem(question)}\n\n{_LETTER[question.language]}"
    return ask(asked, style, question.language, chat, thinks=thinks)


def choice_stem(question: Question) -> str:
    """Return context (if any), question and lettered options, shared by both MCQ methods."""
    parts = [question.context.strip()] if question.context.strip() else []
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    return "\n\n".join([*parts, f"{question.question.strip()}\n{options}"])


def choice_cue(question: Question) -> str:
    """Return the plain prompt after which the options' likelihoods are compared."""
    return f"{choice_stem(question)}\n{_OPTION_CUE[question.language]}"
