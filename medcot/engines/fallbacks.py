"""Records what a run had to do the slower or less precise way, and what that costs.

:func:`report_fallback` is for the code that falls back; :func:`collect_fallbacks` is for the
pipeline, which keeps the reports of one run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fallback:
    """One fallback: a stable ``code`` for programs, a ``message`` for people.

    The message names the cause and the cost. It holds nothing that differs between two runs of one
    seed on one machine (no times, addresses or paths), since it becomes part of ``report.json``.
    """

    code: str
    message: str


class Fallbacks:
    """The fallbacks of one run, each code once.

    ``on_new`` is called after a new one was added, on the thread that reported it.
    """

    def __init__(self, on_new: Callable[[], None] = lambda: None) -> None:
        self._by_code: dict[str, Fallback] = {}
        self._on_new = on_new

    def add(self, fallback: Fallback) -> bool:
        """Keep ``fallback``; return whether its code is new."""
        if fallback.code in self._by_code:
            return False
        self._by_code[fallback.code] = fallback
        self._on_new()
        return True

    def sorted(self) -> list[Fallback]:
        """Return the fallbacks by code, in an order that timing cannot change."""
        return sorted(self._by_code.values(), key=lambda fallback: fallback.code)


_current = Fallbacks()
"""Where reports go: the run that is worked on, else the process. Global like a logger, because
fallbacks are reported from autograd's threads too, which inherit no context."""


def report_fallback(code: str, message: str) -> None:
    """Keep a fallback for the run and log it as a warning, once per run (or per process).

    Call it whenever the fallback takes effect, also when a cached probe says so: repeated reports
    cost a dictionary lookup.

    Args:
        code: Stable name in kebab case, such as ``"no-cuda-graphs"``.
        message: Full sentence with cause and cost, such as "CUDA graphs cannot be captured
            (RuntimeError: …): decoding is up to three times slower."
    """
    if _current.add(Fallback(code, message)):
        logger.warning(message)


def reported_fallbacks() -> list[Fallback]:
    """Return what the current run (or process) has reported so far, by code."""
    return _current.sorted()


@contextmanager
def collect_fallbacks(on_new: Callable[[], None] = lambda: None) -> Iterator[Fallbacks]:
    """Collect what is reported inside. Collections nest: the innermost one receives a report."""
    global _current
    outer, _current = _current, Fallbacks(on_new)
    try:
        yield _current
    finally:
        _current = outer
