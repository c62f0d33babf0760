"""How a command ends: its exit code and at most one line, the same in every process."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import NoReturn

import click

from medcot.credentials import redact
from medcot.distributed import comm
from medcot.errors import Cancelled, InputError, RunFailed
from medcot.terminal import say

INTERRUPTED = "stopped; finished work is kept, --resume continues the run"


class ExitCode(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    INTERRUPTED = 130


@contextmanager
def exit_on_error(*, interrupted: str = INTERRUPTED) -> Generator[None]:
    """Turn whatever the block raises into an exit code and at most one line, secrets hidden.

    Args:
        interrupted: the line after an interrupt.
    """
    try:
        with _terminated_like_interrupted():
            yield
    except InputError as error:
        _exit(ExitCode.WRONG_INPUT, redact(str(error)))
    except click.UsageError as error:
        _exit(ExitCode.WRONG_INPUT, redact(error.format_message()))
    except RunFailed as error:
        _exit(ExitCode.FAILED, redact(str(error)))
    except (Cancelled, KeyboardInterrupt, click.Abort):
        _exit(ExitCode.INTERRUPTED, interrupted)
    except BrokenPipeError:
        # Whoever read the output has closed it; Python would complain when it flushes.
        sys.stderr.close()
        sys.exit(ExitCode.FAILED)
    except SystemExit as error:
        if error.code:
            comm.announce_failure(int(error.code), "see its own lines above.")
        raise
    except Exception as error:
        comm.announce_failure(ExitCode.FAILED, redact(f"{type(error).__name__}: {error}"))
        raise


@contextmanager
def _terminated_like_interrupted() -> Generator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as SIGINT does, so that files are left in order."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals.
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit(code: ExitCode, line: str) -> NoReturn:
    """Exit with ``code``. Of several processes, the main one prints the first failure's line."""
    first = comm.announce_failure(code, line)
    if comm.is_main():
        say(f"medcot: {line if first.rank == 0 else first.explain()}", err=True)
    if comm.world_size() > 1:
        comm.exit_now(first.code)
    sys.exit(first.code)
