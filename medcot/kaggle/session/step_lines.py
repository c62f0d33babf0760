"""Shows every optimizer step in the kernel's log, in a form that people and `push.py wait` read.

``medcot step 12/300 loss=1.25 learning_rate=0.0002 ...``
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medcot.kaggle.session.subprocesses import Say

POLL_S = 1.0
_LINE = re.compile(r"medcot step (\d+)/(\d+)((?: \w+=[\w.+-]+)+)")


def write_step(event: dict[str, Any]) -> str:
    """Return the log's line for a line of ``events.jsonl``."""
    rest = [f"{name}={_short(event[name])}" for name in event if name not in ("step", "steps")]
    return f"medcot step {event['step']}/{event['steps']} {' '.join(rest)}"


def _short(value: float | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_step(line: str) -> dict[str, float | None] | None:
    """Return the values of a line by :func:`write_step`, or None for any other line."""
    found = _LINE.fullmatch(line.strip())
    if not found:
        return None
    values: dict[str, float | None] = {"step": int(found[1]), "steps": int(found[2])}
    for pair in found[3].split():
        name, _, value = pair.partition("=")
        try:
            values[name] = int(value) if value.isdigit() else float(value)
        except ValueError:
            values[name] = None
    return values


@contextlib.contextmanager
def steps_shown(path: Path, say: Say) -> Iterator[Say]:
    """Say each line that ``events.jsonl`` holds or gets while the block runs.

    What the block says goes through the function that is yielded, so that no line overtakes the
    steps before it. A session that continues a run says the earlier steps again: its log has all.
    """
    ended, lock, follower = threading.Event(), threading.Lock(), _EventFile(path)

    def say_steps() -> None:
        for line in follower.read():
            say(line)

    def follow() -> None:
        while not ended.wait(POLL_S):
            with lock:
                say_steps()

    def say_in_order(line: str) -> None:
        with lock:
            say_steps()
            say(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield say_in_order
    finally:
        ended.set()
        thread.join()
        say_steps()


class _EventFile:
    """Reads what was added to ``events.jsonl``, in whole lines, each once.

    A run that resumes at a checkpoint cuts the file there.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0
        self._said: set[bytes] = set()

    def read(self) -> list[str]:
        """Return the new lines as lines of the log."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._position:
                self._position = 0
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = []
        for line in whole.splitlines():
            if line in self._said:
                continue
            self._said.add(line)
            with contextlib.suppress(ValueError, KeyError, TypeError):
                lines.append(write_step(json.loads(line)))
        return lines
