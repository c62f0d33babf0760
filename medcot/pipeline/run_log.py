"""Writes ``medcot.log`` while a run is worked on, and keeps the fallbacks of the run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from medcot.credentials import redact
from medcot.engines.fallbacks import collect_fallbacks, reported_fallbacks
from medcot.listener import Listener
from medcot.runs.directory import RunDirectory

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
PROJECT, WARNINGS = "medcot", "py.warnings"
"""The project's own logger, and the one that stands for Python warnings."""
LIBRARIES = ("accelerate", "bitsandbytes", "datasets", "peft", "torch", "transformers", "trl")
"""Libraries whose log is written down too, from their own level on."""


@contextmanager
def run_log(directory: RunDirectory, listener: Listener, *, resume: bool) -> Iterator[None]:
    """Log what happens inside to ``medcot.log``, and show warnings to ``listener`` too.

    Warnings of other libraries, Python's and logged ones, are written down as well as shown.
    Fallbacks are merged into ``environment.json`` as they are reported. Handlers are removed and
    levels restored on leaving.
    """
    lines, user = _RunLog(directory, resume=resume), _ToListener(listener.say)
    with ExitStack() as stack:
        stack.enter_context(_at_least_info(logging.getLogger(PROJECT)))
        for name in (PROJECT, *LIBRARIES):
            logger = logging.getLogger(name)
            # A logger with handlers of its own shows its warnings by itself.
            handlers = (lines,) if logger.hasHandlers() and name != PROJECT else (lines, user)
            for handler in handlers:
                logger.addHandler(handler)
                stack.callback(logger.removeHandler, handler)
        stack.enter_context(_logged_warnings(lines))
        stack.enter_context(collect_fallbacks(lambda: keep_fallbacks(directory)))
        yield


def keep_fallbacks(directory: RunDirectory) -> None:
    """Merge what was reported so far into ``environment.json``, once that exists.

    It may hold the fallbacks of earlier sessions of the run.
    """
    if not directory.has("environment.json"):
        return
    environment = directory.read_json("environment.json")
    known: list[dict[str, Any]] = environment.get("fallbacks", [])
    found = {one["code"]: one for one in (*map(asdict, reported_fallbacks()), *known)}
    merged = [found[code] for code in sorted(found)]
    if merged != environment.get("fallbacks"):
        directory.write_json("environment.json", environment | {"fallbacks": merged})


class _RunLog(logging.Handler):
    """Appends each record to ``medcot.log``; the file is open only while a record is written.

    Records from before the run directory exists are held back until it does. A directory that
    another run holds is never written to.
    """

    def __init__(self, directory: RunDirectory, *, resume: bool) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT))
        self._directory = directory
        self._foreign = directory.exists() and not resume
        self._held: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self._foreign:
            return
        try:
            self._held.append(redact(self.format(record)))
            if self._directory.exists():
                self._directory.require()
                with self._directory.log.open("a", encoding="utf-8", newline="\n") as file:
                    file.writelines(f"{line}\n" for line in self._held)
                self._held.clear()
        except OSError:
            return  # The disk is full or the directory is gone: the next write of the run says so.
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


class _ToListener(logging.Handler):
    """Shows warnings of the project in the front end, which may own the terminal."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextmanager
def _at_least_info(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _logged_warnings(handler: logging.Handler) -> Iterator[None]:
    """Log Python warnings in addition to showing them as before."""
    logger = logging.getLogger(WARNINGS)
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    show = warnings.showwarning

    def show_and_log(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        show(message, category, filename, lineno, *rest)
        logger.warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)

    warnings.showwarning = show_and_log
    try:
        yield
    finally:
        # Whoever replaced it meanwhile, and did not put it back, keeps it.
        if warnings.showwarning is show_and_log:
            warnings.showwarning = show
        logger.propagate = propagates
        logger.removeHandler(handler)
