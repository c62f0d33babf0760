"""Wait for one version to end: its own status, its live log, and patience with everything else."""

from __future__ import annotations

import enum
import re
import time

from medcot.errors import RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import Status
from medcot.kaggle.client.bundle import MARKER
from medcot.kaggle.client.push import RUNNING, url_of
from medcot.kaggle.client.push_state import Push
from medcot.kaggle.client.retry import Refused
from medcot.kaggle.session.secret_scan import Redactor, known_secrets
from medcot.kaggle.session.subprocesses import Say

UNKNOWN_S = 300.0
"""A version that was just saved may not have a session yet."""
LAST_TRIES = 10
"""How often the end of a log is asked for: the fetch brings all of it anyway."""


class Ending(enum.Enum):
    """How a session ended; the value is the exit code of ``push.py wait``."""

    DONE = 0
    FAILED = 1
    CANCELLED = 3
    TIMED_OUT = 4


def wait(
    account: Account,
    push: Push,
    say: Say,
    show: Say | None = None,
    *,
    interval: float = 20.0,
    limit_s: float | None = None,
) -> tuple[Ending, str]:
    """Until ``push``'s session ends: how, and what Kaggle said of it.

    Args:
        show: gets each line of the live log; None follows no log.
        interval: seconds between two questions.
        limit_s: seconds after which to stop waiting, as timed out; the session goes on.

    Raises:
        RunFailed: Kaggle does not know the version, or did not answer for too long.
    """
    follower = _Follower(account, push, show) if show is not None else None
    end = None if limit_s is None else time.monotonic() + limit_s
    word, unknown_s = "", 0.0
    while True:
        status = account.status(push.ref, push.version)
        if status is not None and (ending := ending_of(status)):
            if follower:
                follower.finish()
            return ending, status.message
        unknown_s = 0.0 if status else unknown_s + interval
        if unknown_s > UNKNOWN_S:
            raise _unknown(push)
        if status and status.word != word:
            word = status.word
            say(f"version {push.version}: {word.lower()}")
        if end is not None and time.monotonic() >= end:
            return Ending.TIMED_OUT, "still running; wait again, nothing is lost"
        if follower and word == "RUNNING":
            follower.read(end)
        account.patience.sleep(interval)


def ending_of(status: Status) -> Ending | None:
    """How a session with ``status`` ended; None while it goes on."""
    if status.word in RUNNING:
        return None
    if status.word == "COMPLETE":
        return Ending.DONE
    if re.search(r"(?i)time[d ]*out|time limit|exceeded .*(time|duration)", status.message):
        return Ending.TIMED_OUT
    return Ending.CANCELLED if status.word == "CANCEL_ACKNOWLEDGED" else Ending.FAILED


def _unknown(push: Push) -> RunFailed:
    return RunFailed(
        "wait",
        f"Kaggle does not know version {push.version} of {push.ref}.",
        f"Look at {url_of(push.ref)}; it may have been deleted.",
    )


class _Follower:
    """Shows each line of the log once, with this machine's secrets hidden, however often the stream
    is cut and replayed."""

    def __init__(self, account: Account, push: Push, show: Say) -> None:
        self._account, self._push, self._show = account, push, show
        self._redact = Redactor(known_secrets())
        self._seen, self._rest = 0, ""
        self._wrong = False

    def finish(self) -> None:
        """Read what is left of the log of a session that has ended, though it be cut again."""
        for _ in range(LAST_TRIES):
            if self.read():
                return
            self._account.patience.sleep(self._account.patience.first)

    def read(self, end: float | None = None) -> bool:
        """Follow the stream until it ends, is cut, or ``end``; each call begins it anew.

        Whether there is no more to come.
        """
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
        except (Refused, RequestException, ConnectionError, TimeoutError):
            return False  # the status decides, and the next question comes soon
        self._take("\n" if self._rest else "")
        return True

    def _take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(MARKER) and self._push.checksum not in line:
                self._wrong = True  # the log of another version than the one that was asked for
                return
            self._show(self._redact(line))
