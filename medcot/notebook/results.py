"""Values or errors as text, for a front end that must survive every error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from medcot.catalog import Message
from medcot.credentials import redact
from medcot.errors import Cancelled, InputError, RunFailed, one_line


@dataclass(frozen=True, slots=True)
class ErrorText:
    """An error without its traceback, which would keep a model in memory.

    ``kind`` is ``input`` (something given is wrong), ``failed`` (a stage gave up) or
    ``unforeseen``; ``what`` says what was found, ``remedy`` what to do.
    """

    kind: Literal["input", "failed", "unforeseen"]
    where: str
    what: str | Message
    remedy: str | Message

    def __str__(self) -> str:
        return f"{self.where}: {self.what} {self.remedy}".strip()


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returned, or the error that it raised."""

    value: Any = None
    failure: ErrorText | None = None


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Result:
    """Call ``function``; return what it returns, or the text of what it raises."""
    try:
        return Result(value=function(*arguments, **options))
    except Exception as error:  # noqa: BLE001 - the page must survive whatever it is
        return Result(failure=describe_error(error))


def describe_error(error: BaseException) -> ErrorText:
    """Return the text of ``error``, secrets hidden, with what to do where that is known."""
    if isinstance(error, InputError):
        got = error.got if isinstance(error.got, Message) else one_line(error.got)
        return ErrorText("input", redact(error.where), _shown(got), _shown(error.needs))
    if isinstance(error, RunFailed):
        return ErrorText("failed", error.stage, _shown(error.message), _shown(error.remedy))
    if isinstance(error, Cancelled):
        return ErrorText("failed", "", "cancelled", "")
    return ErrorText("unforeseen", type(error).__name__, redact(one_line(str(error))), "")


def _shown(text: str | Message) -> str | Message:
    """Hide secrets, in the values of a message too, which are rendered in either language."""
    if isinstance(text, Message):
        values = {n: redact(v) if isinstance(v, str) else v for n, v in text.values.items()}
        return replace(text, values=values)
    return redact(text)
