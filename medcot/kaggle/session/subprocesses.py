"""Run a command in the kernel: its lines are shown as they come, and it is stopped in time."""

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

ASKED_S, TOLD_S = 300.0, 20.0
"""Seconds to save and end after the interrupt, and after the termination that follows it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, 128 + N where signal N ended it (as a shell has it).

    ``stopped`` says that it was this module that ended it.
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
) -> Ended:
    """Run ``command``, pass on its output line by line, interrupt it after ``seconds``.

    The interrupt is the one that a person's Ctrl-C sends, to the whole group: a run answers it
    by saving a checkpoint and ending with 130.
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
        # A parent in the background hands down an ignored Ctrl-C, which Python then keeps.
        preexec_fn=_answer_interrupts,
    ) as process:
        reader = threading.Thread(target=_pass_on, args=(process, say), daemon=True)
        reader.start()
        try:
            stopped = _wait_or_stop(process, seconds)
        except BaseException:
            _signal_group(process, signal.SIGKILL)
            raise
        # A grandchild that outlives the command keeps the pipe open: don't wait for it for ever.
        reader.join(timeout=TOLD_S)
    code = process.returncode
    return Ended(code if code >= 0 else 128 - code, stopped)


def _wait_or_stop(process: subprocess.Popen[str], seconds: float | None) -> bool:
    """Whether the command had to be stopped."""
    steps = ((seconds, signal.SIGINT), (ASKED_S, signal.SIGTERM), (TOLD_S, signal.SIGKILL))
    for number, (patience, then) in enumerate(steps):
        deadline = None if patience is None else time.monotonic() + max(0.0, patience)
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
