"""The errors that end a command, each of which prints as one line."""

from __future__ import annotations

from difflib import get_close_matches

from medcot.catalog import Message


class InputError(Exception):
    """Reject something that the user gave: one line, exit code 2, nothing lost.

    The line is ``WHERE: GOT; NEEDS``. ``where`` names the option, file, row or field; ``got`` says
    what is wrong there (``found 0``, ``no such file``); ``needs`` says what to give or do instead
    (``expected a whole number from 1 to 256``, ``use --quantization none``). Neither ends with a
    full stop.
    """

    def __init__(self, where: str, got: str | Message, needs: str | Message) -> None:
        self.where, self.got, self.needs = where, got, needs
        super().__init__(f"{_without_middle(where)}: {one_line(got)}; {one_line(needs, 800)}")


class RunFailed(Exception):
    """Report that a stage of a run could not finish: one line, exit code 1, ``error.json``.

    ``message`` and ``remedy`` are sentences: what happened, and what to do about it.
    """

    def __init__(self, stage: str, message: str | Message, remedy: str | Message) -> None:
        self.stage, self.message, self.remedy = stage, message, remedy
        super().__init__(f"{stage}: {message} {remedy}".strip())


class Cancelled(Exception):
    """End a command because the user asked to: finished work is kept, exit code 130."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: a GPU's, a Mac's or what the CPU allocates."""
    told = ("not enough memory", "MPS backend out of memory")
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


def one_line(text: str | Message, width: int = 160) -> str:
    """Fold the whitespace of ``text`` and shorten it to ``width`` characters."""
    folded = " ".join(str(text).split())
    return folded if len(folded) <= width else folded[: width - 1] + "…"


def _without_middle(text: str, width: int = 400) -> str:
    """Shorten a place whose end tells most, such as a path with a line, to ``width`` characters."""
    folded = " ".join(text.split())
    if len(folded) <= width:
        return folded
    return f"{folded[: width // 2]}…{folded[1 - width // 2 :]}"


def nearest(name: str, known: list[str]) -> str:
    """Return `` (did you mean X?)`` for the closest of ``known``, or an empty string."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
