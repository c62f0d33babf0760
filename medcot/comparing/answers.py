"""Asks both sides one question; both answers grow next to one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medcot.comparing.sides import Side
from medcot.errors import InputError
from medcot.inference.ask import StreamedReply, ask


@dataclass(frozen=True, slots=True)
class TwoReplies:
    """Both replies as far as they are generated; None before the first token."""

    first: StreamedReply | None = None
    second: StreamedReply | None = None


def ask_both(
    first: Side, second: Side, question: str, max_new_tokens: int | None = None
) -> Iterator[TwoReplies]:
    """Yield both replies as they grow, first the one, then the other.

    One model is loaded at a time, so that two of them need no more memory than one.

    Raises:
        InputError: The question is empty, or a run has no adapter.
    """
    for side in (first, second):
        if not side.is_base and not (side.directory.adapter / "adapter_config.json").exists():
            raise InputError(side.option, "the run has no adapter", "train it first: medcot train")
    shown = TwoReplies()
    for reply in ask(first.directory, question, base=first.is_base, max_new_tokens=max_new_tokens):
        shown = TwoReplies(reply)
        yield shown
    for reply in ask(
        second.directory, question, base=second.is_base, max_new_tokens=max_new_tokens
    ):
        yield TwoReplies(shown.first, reply)
