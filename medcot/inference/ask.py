"""Ask the tuned or the untuned model one question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.data.prompts import CLOSE, parse
from medcot.data.prompts import ask as ask_prompt
from medcot.engines import loading as models
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import Plan, make_plan
from medcot.runs.directory import RunDirectory
from medcot.runs.environment import NOT_MEDICAL_ADVICE


def ask(
    directory: RunDirectory, question: str, *, base: bool = False, max_new_tokens: int | None = None
) -> Iterator[str]:
    """Pieces of text for a person: the thought, a rule, the answer, and what this is not.

    Raises:
        InputError: an empty question, or a run without an adapter.
    """
    from medcot.inference.generate import stream

    config, loaded, prompt = _load(directory, question, base=base)
    limit = max_new_tokens or config.max_new_tokens
    yield "Thought\n-------\n"
    closed = False
    for piece in _whole_tags(stream(loaded, prompt, limit)):
        if not closed and CLOSE in piece:
            thought, _, answer = piece.partition(CLOSE)
            yield f"{thought.rstrip()}\n\nAnswer\n------\n{answer.lstrip()}"
            closed = True
        else:
            yield piece
    if not closed:
        yield f"\n\n(no answer: the thought was not closed within {limit} tokens)"
    yield f"\n\n{NOT_MEDICAL_ADVICE}\n"


def ask_whole(
    directory: RunDirectory, question: str, *, base: bool = False, max_new_tokens: int | None = None
) -> dict[str, Any]:
    """The same as facts: thought, answer, closed, finished, tokens."""
    from medcot.inference.generate import generate

    config, loaded, prompt = _load(directory, question, base=base)
    output = generate(loaded, [prompt], max_new_tokens or config.max_new_tokens)[0]
    reply = parse(output.text)
    return {
        "model": "base" if base else "tuned",
        "question": question,
        "thought": reply.thought,
        "answer": reply.answer,
        "closed": reply.closed,
        "finished": output.finished,
        "tokens": output.tokens,
        "note": NOT_MEDICAL_ADVICE,
    }


def load_run(directory: RunDirectory, *, base: bool = False) -> models.LoadedModel:
    """The model of a run: tuned, or untuned with ``base``."""
    config = directory.config()
    if not base and not (directory.adapter / "adapter_config.json").exists():
        raise InputError(
            f"--run {directory.path}", "the run has no adapter", "train it first, or use --base"
        )
    plan = inference_plan(config)
    loaded = models.load_base(config, plan)
    if not base:
        models.load_adapter(loaded, config, plan, directory.adapter)
    return loaded


def inference_plan(config: RunConfig) -> Plan:
    """A plan for this machine, good enough to load the model of ``config`` for answers."""
    return make_plan(
        config,
        detect_machine(),
        find_model_spec(config),
        config.samples,
        config.max_length / 2,
        config.max_length,
    )


def _load(
    directory: RunDirectory, question: str, *, base: bool
) -> tuple[RunConfig, models.LoadedModel, str]:
    if not question.strip():
        raise InputError("QUESTION", Message("error_empty_text"), Message("needs_question"))
    config = directory.config()
    loaded = load_run(directory, base=base)
    return config, loaded, ask_prompt(question, config.style, config.language, loaded.chat)


def _whole_tags(pieces: Iterator[str]) -> Iterator[str]:
    """The same text in pieces that never cut the closing tag in two."""
    held = ""
    for piece in pieces:
        held += piece
        keep = next((n for n in range(len(CLOSE) - 1, 0, -1) if held.endswith(CLOSE[:n])), 0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held
