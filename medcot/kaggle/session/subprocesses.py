"""Run a command in the kernel: show its lines as they come, and stop it in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]
"""Takes one line for the user."""

INTERRUPT_GRACE_S, TERMINATE_GRACE_S = 300.0, 20.0
"""Seconds that a command gets to end after SIGINT, and after the SIGTERM that follows."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a command ended: its exit code, or 128 + N if signal N ended it, as in a shell.

    ``stopped`` is true if this module stopped it.
    """

    code: int
    stopped: bool


def run_command(
    command: Sequence[str],
    say: Say,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    seconds: float | None = None,
) -> ExitStatus:
    """Run ``command``, pass its output to ``say`` line by line, and interrupt it after ``seconds``.

    The interrupt is SIGINT to the whole process group, as by Ctrl-C: a run answers it by saving a
    checkpoint and exiting with 130.
    """
    with subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=None if environ is None else dict(environ),
        cwd=folder,
        start_new_session=True,
        # A parent in the background passes on an ignored SIGINT, which Python then keeps ignoring.
        preexec_fn=_answer_interrupts,
    ) as process:
        reader = threading.Thread(target=_pass_on, args=(process, say), daemon=True)
        reader.start()
        try:
            stopped = _wait_or_stop(process, seconds)
        except BaseException:
            _signal_group(process, signal.SIGKILL)
            raise
        # A grandchild that outlives the command keeps the pipe open: do not wait for it.
        reader.join(timeout=TERMINATE_GRACE_S)
    code = process.returncode
    return ExitStatus(code if code >= 0 else 128 - code, stopped)


def _wait_or_stop(process: subprocess.Popen[str], seconds: float | None) -> bool:
    """Wait for the command and return whether it had to be stopped."""
    steps = (
        (seconds, signal.SIGINT),
        (INTERRUPT_GRACE_S, signal.SIGTERM),
        (TERMINATE_GRACE_S, signal.SIGKILL),
    )
    for number, (grace_s, then) in enumerate(steps):
        deadline = None if grace_s is None else time.monotonic() + max(0.0, grace_s)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            return number > 0
        _signal_group(process, then)
    process.wait()
    return True


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _answer_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _pass_on(process: subprocess.Popen[str], say: Say) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):
        for line in process.stdout:
            say(line.rstrip("\n"))
