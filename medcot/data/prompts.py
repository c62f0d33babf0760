"""Defines the text format of a row: :func:`render` writes it, :func:`parse` reads it.

No other module knows the format. Both styles produce two strings, so that only the completion is
trained on. The models' own chat templates are used for the user's turn only: the R1-Distill
template deletes the chain of thought from an assistant's turn.
"""

from __future__ import annotations

from collections.abc import Callable

from medcot.records import Case, Language, Prompt, Question, Reply, Style

OPEN, CLOSE = "<think>", "</think>"

ChatTemplate = Callable[[str], str]
"""Turns a user's message into the model's prompt, up to the assistant's turn."""

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

_CHAT = {
    "en": "{question}\n\nThink step by step inside <think> tags, then give your answer.",
    "zh": "{question}\n\n请先在 <think> 标签内逐步思考，然后用中文给出答案。",
}

_LETTER = {
    "en": "End with one line: Answer: followed by the letter of the right option.",
    "zh": "最后单独一行写出：答案：正确选项的字母。",
}

_OPTION_CUE = {"en": "Answer:", "zh": "答案："}


def render(case: Case, style: Style, chat: ChatTemplate | None = None) -> Prompt:
    """Return a case's training pair; ``parse(render(case).completion)`` recovers its parts."""
    text = ask(case.question, style, case.language, chat)
    return Prompt(text, f"{case.thought.strip()}\n{CLOSE}\n\n{case.response.strip()}")


def ask(question: str, style: Style, language: Language, chat: ChatTemplate | None = None) -> str:
    """Return the inference prompt: everything up to and including the opened thought.

    Raises:
        ValueError: ``chat`` style without the model's template.
    """
    if style == "tutorial":
        return _TUTORIAL[language].replace("{question}", question.strip()) + f"{OPEN}\n"
    if chat is None:
        raise ValueError("chat style needs the model's chat template")
    turn = chat(_CHAT[language].replace("{question}", question.strip()))
    return turn if turn.rstrip().endswith(OPEN) else f"{turn}{OPEN}\n"


def ask_plainly(question: str, language: Language, chat: ChatTemplate | None = None) -> str:
    """Return the prompt of a question asked in the model's own way, without a word about thoughts.

    A thought that the model's template opens is closed at once. A model without a template is asked
    in the tutorial's style.
    """
    if chat is None:
        return close_thought(ask(question, "tutorial", language))
    turn = chat(question.strip())
    return close_thought(turn) if turn.rstrip().endswith(OPEN) else turn


def ask_choice_plainly(question: Question, chat: ChatTemplate | None = None) -> str:
    """Return the prompt that asks for the letter of one option, as :func:`ask_plainly` asks."""
    stem = f"{choice_stem(question)}\n\n{_LETTER[question.language]}"
    return ask_plainly(stem, question.language, chat)


def close_thought(prompt: str, thought: str = "") -> str:
    """Return a prompt of :func:`ask` with ``thought``, or an empty one, written and closed."""
    return f"{prompt.rstrip()}\n{thought.strip()}\n{CLOSE}"


def parse(output: str) -> Reply:
    """Parse a continuation of :func:`ask`.

    The text before the first closing tag is the thought, the text after it the answer. Without a
    closing tag there is no answer: nothing is guessed.
    """
    text = output.strip().removeprefix(OPEN).lstrip()
    thought, tag, answer = text.partition(CLOSE)
    return Reply(thought.strip(), answer.strip(), closed=bool(tag))


def parse_growing(output: str) -> Reply:
    """Parse a continuation that is still growing.

    The beginning of a tag is held back until it is whole, so that thought and answer only grow.
    """
    if OPEN.startswith(output.strip()):
        return Reply("", "", closed=False)
    held = next((n for n in range(len(CLOSE) - 1, 0, -1) if output.endswith(CLOSE[:n])), 0)
    return parse(output[: len(output) - held])


def ask_choice(question: Question, style: Style, chat: ChatTemplate | None = None) -> str:
    """Return the prompt that asks for reasoning and then the letter of one option."""
    stem = choice_stem(question)
    return ask(f"{stem}\n\n{_LETTER[question.language]}", style, question.language, chat)


def choice_stem(question: Question) -> str:
    """Return context (if any), question and lettered options, shared by both MCQ methods."""
    parts = [question.context.strip()] if question.context.strip() else []
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    return "\n\n".join([*parts, f"{question.question.strip()}\n{options}"])


def choice_cue(question: Question) -> str:
    """Return the plain prompt after which the options' likelihoods are compared."""
    return f"{choice_stem(question)}\n{_OPTION_CUE[question.language]}"
