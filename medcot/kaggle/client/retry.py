"""Retry calls to a busy server: after 429, 5xx and lost connections, with growing delays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from medcot.errors import RunFailed, one_line

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to retry and how long to wait between two tries, in seconds.

    Delays double from ``first_delay_s`` to ``longest_delay_s``; a Retry-After header overrides
    them. A session on Kaggle continues whether or not anyone asks about it, so the default limit is
    long.
    """

    limit_s: float = 1800.0
    first_delay_s: float = 2.0
    longest_delay_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep


class RequestRefused(Exception):
    """Report an HTTP error status that a retry does not change."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, one_line(message)
        super().__init__(f"HTTP {status}: {self.message}")


def call_with_retries(call: Callable[[], T], policy: RetryPolicy, what: str) -> T:
    """Call ``call`` until it returns, as long as the server is busy or unreachable.

    Args:
        what: names the call in the error.

    Raises:
        RequestRefused: an HTTP error other than 429 and 5xx.
        RunFailed: the server stayed busy or unreachable for longer than the policy allows.
    """
    from requests.exceptions import HTTPError, RequestException

    delay, end = policy.first_delay_s, time.monotonic() + policy.limit_s
    waited = 0.0
    while True:
        try:
            return call()
        except HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status != 429 and status < 500:
                raise RequestRefused(status, str(error)) from None
            reason, wait = f"HTTP {status}", retry_after(error.response) or delay
        except (RequestException, ConnectionError, TimeoutError) as error:
            reason, wait = type(error).__name__, delay
        if time.monotonic() + wait > end or waited + wait > policy.limit_s:
            raise RunFailed(
                "Kaggle",
                f"no answer to {what} for {policy.limit_s / 60:.0f} minutes ({reason}).",
                "Nothing is lost; run the same command again later.",
            )
        policy.sleep(wait)
        waited += wait
        delay = min(delay * 2, policy.longest_delay_s)


def retry_after(response: Any) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), or None."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    if response is None:
        return None
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", ""))
    except InvalidHeader:
        return None
