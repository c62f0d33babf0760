"""What a front end that must stay alive does with errors: keep them as text, say what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from medcot.errors import Cancelled, InputError, RunFailed, one_line


@dataclass(frozen=True, slots=True)
class Failure:
    """An error without its traceback, which would keep a model in memory.

    ``kind`` is ``input`` (something given is wrong), ``failed`` (a stage gave up) or
    ``unforeseen``; ``what`` says what was found, ``remedy`` what to do.
    """

    kind: Literal["input", "failed", "unforeseen"]
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} {self.remedy}".strip()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt gave: a value, or why there is none."""

    value: Any = None
    failure: Failure | None = None


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Outcome:
    """Call ``function``; what it raises becomes a :class:`Failure`."""
    try:
        return Outcome(value=function(*arguments, **options))
    except Exception as error:  # noqa: BLE001 - the page must stay alive, whatever it is
        return Outcome(failure=describe_error(error))


def describe_error(error: BaseException) -> Failure:
    """``error`` as text."""
    if isinstance(error, InputError):
        return Failure("input", error.where, one_line(error.got), error.needs)
    if isinstance(error, RunFailed):
        return Failure("failed", error.stage, error.message, error.remedy)
    if isinstance(error, Cancelled):
        return Failure("failed", "", "cancelled", "")
    return Failure("unforeseen", type(error).__name__, one_line(str(error)), "")
