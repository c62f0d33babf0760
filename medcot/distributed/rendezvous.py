"""What ``torchrun`` and ``accelerate launch`` give a process: a number, and a store for all.

The store holds keys and values. A wait there costs nothing and has no time limit, which a
collective has; and a process that fails can say so to those that wait.
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

CONNECT_S = 600
"""How long the processes may take to find one another."""
GRACE_S = 15.0
"""What a process has to end by itself after another one failed. One that is stuck in a collective
never would, and is ended then."""


def rank() -> int:
    """This process's number, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes train side by side, on all hosts together."""
    return max(1, _number("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that writes, prints and scores."""
    return rank() == 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process ended: its exit code and the line that says so."""

    rank: int
    host: str
    code: int
    line: str

    def as_error(self) -> Cancelled | RunFailed:
        """What it means to another process."""
        if self.code == 130:
            return Cancelled()
        return RunFailed(f"process {self.rank} on {self.host}", self.line, "")

    def explain(self) -> str:
        """Its line, and where it happened unless all of them were asked to stop."""
        return self.line if self.code == 130 else str(self.as_error())


class Link:
    """This process's connection to the store, and the thread that watches for failures.

    ``record`` is called in the main process when another one failed and this one is stuck;
    ``stop`` is set when another process asks for that, or failed. ``ending`` says that this
    process is about to leave by itself.
    """

    def __init__(self, store: Any) -> None:
        self.store = _named(store)
        # A client answers one question at a time, so the watching thread has its own.
        self._watched = _named(store.clone())
        self.turn = 0
        self.ending = False
        self.stop = threading.Event()
        self.record: Callable[[Failure], None] = _record_nothing
        threading.Thread(target=self._watch, daemon=True).start()

    def failure(self) -> Failure | None:
        """What ended the first process that failed, or None."""
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
            self._end_after(Failure(0, "the launcher's host", 1, "the connection to it was lost."))
        return None

    def _end_after(self, ended: Failure) -> None:
        self.stop.set()
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            if self.ending:
                return
            time.sleep(0.2)
        if is_main():
            self.record(ended)
            print(f"medcot: {ended.explain()}", file=sys.stderr)
        # The main thread is inside a call that never returns; nothing gentler would end it.
        leave(ended.code)


@cache
def connect() -> Link | RunFailed:
    """The connection, or why there is none: trying again would take as long again."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=CONNECT_S))))
    except (RuntimeError, ValueError) as error:
        why = one_line(str(error))
        found = f"the {world_size()} processes could not connect to one another ({why})."
        return RunFailed("start", found, "See docs/several-gpus.md.")
    return Link(store)


def leave(code: int) -> NoReturn:
    """End at once: what libraries do at a usual exit could wait for a process that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read_failure(store: Any) -> Failure | None:
    return Failure(**json.loads(store.get("failure"))) if store.check(["failure"]) else None


def _record_nothing(_: Failure) -> None:
    """The stand-in until a run says what to write down."""


def _named(store: Any) -> Any:
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"medcot/{attempt}", store)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else default
