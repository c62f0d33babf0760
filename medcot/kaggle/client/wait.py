"""Wait for one version to end: poll its status and show its live log."""

from __future__ import annotations

import enum
import re
import time
from typing import Literal

from medcot.credentials import Redactor, known_secrets
from medcot.errors import RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import SessionStatus
from medcot.kaggle.client.bundle import MARKER
from medcot.kaggle.client.push import RUNNING, url_of
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.retry import RequestRefused
from medcot.kaggle.session.subprocesses import Say

UNKNOWN_S = 300.0
"""Seconds that a version may be unknown: one that was just saved may not have a session yet."""
LAST_TRIES = 10
"""How often the rest of a log is requested after the end: `fetch` brings all of it anyway."""


class FinalStatus(enum.Enum):
    """Kaggle's final status of a session; the value is the exit code of ``push.py wait``."""

    DONE = 0
    FAILED = 1
    CANCELLED = 3
    TIMED_OUT = 4

    @property
    def text(self) -> FinalText:
        """The status in lower-case words."""
        return _TEXTS[self]


FinalText = Literal["done", "failed", "cancelled", "timed out"]
_TEXTS: dict[FinalStatus, FinalText] = {
    FinalStatus.DONE: "done",
    FinalStatus.FAILED: "failed",
    FinalStatus.CANCELLED: "cancelled",
    FinalStatus.TIMED_OUT: "timed out",
}


def wait(
    account: Account,
    push: PushRecord,
    say: Say,
    show_log: Say | None = None,
    *,
    interval: float = 20.0,
    limit_s: float | None = None,
) -> tuple[FinalStatus, str]:
    """Wait until ``push``'s session ends; return its final status and Kaggle's message.

    Args:
        say: gets a line at each change of the status.
        show_log: gets each line of the live log; None follows no log.
        interval: seconds between two requests.
        limit_s: seconds after which to stop waiting, as timed out; the session continues.

    Raises:
        RunFailed: Kaggle does not know the version, or did not answer for too long.
    """
    follower = _LogFollower(account, push, show_log) if show_log is not None else None
    end = None if limit_s is None else time.monotonic() + limit_s
    state, unknown_s = "", 0.0
    while True:
        status = account.status(push.ref, push.version)
        if status is not None and (final := final_status(status)):
            if follower:
                follower.finish()
            return final, status.message
        unknown_s = 0.0 if status else unknown_s + interval
        if unknown_s > UNKNOWN_S:
            raise _unknown(push)
        if status and status.state != state:
            state = status.state
            say(f"version {push.version}: {state.lower()}")
        if end is not None and time.monotonic() >= end:
            return FinalStatus.TIMED_OUT, "still running; wait again, nothing is lost"
        if follower and state == "RUNNING":
            follower.read(end)
        account.policy.sleep(interval)


def final_status(status: SessionStatus) -> FinalStatus | None:
    """Return the final status of a session in ``status``, or None while it runs."""
    if status.state in RUNNING:
        return None
    if status.state == "COMPLETE":
        return FinalStatus.DONE
    if re.search(r"(?i)time[d ]*out|time limit|exceeded .*(time|duration)", status.message):
        return FinalStatus.TIMED_OUT
    return FinalStatus.CANCELLED if status.state == "CANCEL_ACKNOWLEDGED" else FinalStatus.FAILED


def _unknown(push: PushRecord) -> RunFailed:
    return RunFailed(
        "wait",
        f"Kaggle does not know version {push.version} of {push.ref}.",
        f"Look at {url_of(push.ref)}; it may have been deleted.",
    )


class _LogFollower:
    """Shows each line of the log once, with this machine's secrets hidden.

    The stream begins anew after every cut.
    """

    def __init__(self, account: Account, push: PushRecord, show: Say) -> None:
        self._account, self._push, self._show = account, push, show
        self._redact = Redactor(known_secrets())
        self._seen, self._rest = 0, ""
        self._wrong = False

    def finish(self) -> None:
        """Read the rest of the log of a session that has ended, even if it is cut again."""
        for _ in range(LAST_TRIES):
            if self.read():
                return
            self._account.policy.sleep(self._account.policy.first_delay_s)

    def read(self, end: float | None = None) -> bool:
        """Follow the stream until it ends, is cut, or until ``end``; return whether it ended."""
        from requests.exceptions import RequestException

        if self._wrong:
            return True
        position = 0
        try:
            for piece in self._account.follow(self._push.ref, self._push.version):
                new = piece[max(0, self._seen - position) :]
                position += len(piece)
                self._seen = max(self._seen, position)
                self._take(new)
                if self._wrong or (end is not None and time.monotonic() >= end):
                    return self._wrong
        except (RequestRefused, RequestException, ConnectionError, TimeoutError):
            return False  # the status decides, and the next request comes soon
        self._take("\n" if self._rest else "")
        return True

    def _take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(MARKER) and self._push.checksum not in line:
                self._wrong = True  # the log of another version
                return
            self._show(self._redact(line))
