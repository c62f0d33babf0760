"""Connects a process to the others of its run, by what ``torchrun`` or ``accelerate launch`` set.

A launcher gives each process a rank and all of them a key-value store. Waiting at the store costs
nothing and has no time limit, which a collective has, and a process that fails can announce it to
those that wait.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn

from medcot.errors import Cancelled, RunFailed, one_line
from medcot.terminal import say

CONNECT_S = 600
"""Seconds the processes may take to find one another."""
GRACE_S = 15.0
"""Seconds a process may take to exit after a peer fails. After that it is killed, since one that is
blocked in a collective never exits."""


def rank() -> int:
    """Return this process's rank, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """Return the number of processes of the run, on all hosts together."""
    return max(1, _number("WORLD_SIZE", 1))


def is_main() -> bool:
    """Return whether this is the main process, which writes, prints and scores."""
    return rank() == 0


@dataclass(frozen=True, slots=True)
class ProcessFailure:
    """Why a process ended: its exit code and the line that its user sees."""

    rank: int
    host: str
    code: int
    line: str

    def as_error(self) -> Cancelled | RunFailed:
        """Return the error that it means to another process."""
        if self.code == 130:
            return Cancelled()
        return RunFailed(f"process {self.rank} on {self.host}", self.line, "")

    def explain(self) -> str:
        """Return its line, with the process unless all processes were asked to stop."""
        return self.line if self.code == 130 else str(self.as_error())


class Connection:
    """This process's connection to the store, with a thread that watches for failures.

    Attributes:
        messages: Messages of the main process sent or received so far.
        ending: True once this process is about to exit by itself.
        stop: Set when another process failed, or requests a stop.
        record: Called in the main process when another one failed and it is stuck itself.
    """

    def __init__(self, store: Any) -> None:
        self.store = _named(store)
        # A client serves one call at a time, so the watching thread has its own.
        self._watched = _named(store.clone())
        self.messages = 0
        self.ending = False
        self.stop = threading.Event()
        self.record: Callable[[ProcessFailure], object] = _record_nothing
        threading.Thread(target=self._watch, daemon=True).start()

    def failure(self) -> ProcessFailure | None:
        """Return what ended the first process that failed, or None."""
        return _read_failure(self.store)

    def _watch(self) -> None:
        try:
            while not self.ending:
                if self._watched.check(["stop"]):
                    self.stop.set()
                if found := _read_failure(self._watched):
                    return self._end_after(found)
                time.sleep(1.0)
        except RuntimeError:
            # The store is gone, and with it the process or the launcher that held it.
            self._end_after(
                ProcessFailure(0, "the launcher's host", 1, "the connection to it was lost.")
            )
        return None

    def _end_after(self, ended: ProcessFailure) -> None:
        self.stop.set()
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            if self.ending:
                return
            time.sleep(0.2)
        if is_main():
            self.record(ended)
            say(f"medcot: {ended.explain()}", err=True)
        # The main thread is inside a call that never returns; nothing gentler would end it.
        exit_now(ended.code)


def connect() -> Connection:
    """Return this process's connection to the store, made on the first call.

    A process has one rank in one run, so it has one connection. A failed attempt is final: it took
    ten minutes, and the other processes have given up too.

    Raises:
        RunFailed: The processes did not find one another.
    """
    if why := _failed_attempt():
        found = f"the {world_size()} processes could not connect to one another ({why})."
        raise RunFailed("start", found, "See docs/several-gpus.md.")
    return _connection()


@cache
def _connection() -> Connection:
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=CONNECT_S))))
    return Connection(store)


@cache
def _failed_attempt() -> str:
    """Connect, and return why that failed; "" after success."""
    try:
        _connection()
    except (RuntimeError, ValueError) as error:
        return one_line(str(error))
    return ""


def exit_now(code: int) -> NoReturn:
    """Exit at once: libraries' exit handlers could wait for a process that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read_failure(store: Any) -> ProcessFailure | None:
    return ProcessFailure(**json.loads(store.get("failure"))) if store.check(["failure"]) else None


def _record_nothing(_: ProcessFailure) -> None:
    """Stand in until a run sets what to write down."""


def _named(store: Any) -> Any:
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"medcot/{attempt}", store)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and len(text) < 10 else default
