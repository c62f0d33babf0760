"""Asks the tuned or the untuned model of a run one question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.data.prompts import ask as ask_prompt
from medcot.data.prompts import parse, parse_growing
from medcot.engines import loading as models
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import Plan, make_plan
from medcot.records import Generation, Reply
from medcot.runs.directory import RunDirectory
from medcot.runs.environment import NOT_MEDICAL_ADVICE


@dataclass(frozen=True, slots=True)
class StreamedReply(Reply):
    """A reply as far as it is generated.

    Attributes:
        finished: False in the last reply when ``limit`` cut it off, else True.
        tokens: Tokens generated so far, the end-of-sequence token included.
        limit: The most tokens that are generated.
    """

    finished: bool
    tokens: int
    limit: int


def ask(
    directory: RunDirectory, question: str, *, base: bool = False, max_new_tokens: int | None = None
) -> Iterator[StreamedReply]:
    """Load the model of a run and yield its reply as it grows; the last one is the whole reply.

    Args:
        base: Ask the untuned model.
        max_new_tokens: The most tokens to generate; None for the run's own limit.

    Raises:
        InputError: The question is empty, or the run has no adapter.
    """
    from medcot.inference.generate import stream

    if not question.strip():
        raise InputError("QUESTION", Message("error_empty_text"), Message("needs_question"))
    config = directory.config()
    loaded = load_run(directory, base=base)
    thinks = config.thinks
    prompt = ask_prompt(question, config.style, config.language, loaded.chat, thinks=thinks)
    limit = max_new_tokens or config.max_new_tokens
    try:
        last = None
        for generation in stream(loaded, prompt, limit):
            if last is not None:
                growing = parse_growing(last.text, thinks=thinks)
                yield _streamed(growing, last, limit, finished=True)
            last = generation
        if last is not None:
            reply = parse(last.text, thinks=thinks)
            yield _streamed(reply, last, limit, finished=last.finished)
    finally:
        models.release(loaded)


def write_reply(replies: Iterable[StreamedReply]) -> Iterator[str]:
    """Turn a growing reply into pieces of text for a terminal.

    The thought comes first, then the answer under a heading, then :data:`NOT_MEDICAL_ADVICE`.
    Where no thought is asked for, the answer is all.
    """
    shown: StreamedReply | None = None
    for reply in replies:
        # Not before the first reply: whatever is wrong is raised until then.
        plain = reply.closed and not reply.thought
        yield "" if shown or plain else "Thought\n-------\n"
        yield reply.thought[len(shown.thought if shown else "") :]
        if reply.closed and not (shown and shown.closed):
            yield "Answer\n------\n" if plain and not shown else "\n\nAnswer\n------\n"
        yield reply.answer[len(shown.answer if shown else "") :]
        shown = reply
    if shown and not shown.closed:
        yield f"\n\n(no answer: the thought was not closed within {shown.limit} tokens)"
    yield f"\n\n{NOT_MEDICAL_ADVICE}\n"


def describe_reply(
    question: str, replies: Iterable[StreamedReply], *, base: bool
) -> dict[str, str | bool | int]:
    """Wait for the whole reply and return it as ``medcot ask --json`` prints it."""
    *_, last = replies
    return {
        "model": "base" if base else "tuned",
        "question": question,
        "thought": last.thought,
        "answer": last.answer,
        "closed": last.closed,
        "finished": last.finished,
        "tokens": last.tokens,
        "note": NOT_MEDICAL_ADVICE,
    }


def load_run(directory: RunDirectory, *, base: bool = False) -> models.LoadedModel:
    """Load the tuned model of a run, or the untuned one with ``base``.

    Raises:
        InputError: The run has no adapter.
    """
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
    """Return a plan for this machine, good enough to load the model of ``config`` for answers."""
    return make_plan(
        config,
        detect_machine(),
        find_model_spec(config),
        config.samples,
        config.max_length / 2,
        config.max_length,
    )


def _streamed(reply: Reply, generation: Generation, limit: int, *, finished: bool) -> StreamedReply:
    return StreamedReply(
        reply.thought, reply.answer, reply.closed, finished, generation.tokens, limit
    )
