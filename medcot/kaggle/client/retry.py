"""Ask a busy server again: 429 when it says, 5xx and lost connections a little later each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from medcot.errors import RunFailed, one_line

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to put up with a server that does not answer, in seconds.

    A session on Kaggle goes on whether or not anyone asks after it, so the default is long.
    """

    seconds: float = 1800.0
    first: float = 2.0
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep


class Refused(Exception):
    """The server answered, and said no: an HTTP status that trying again does not change."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, one_line(message)
        super().__init__(f"HTTP {status}: {self.message}")


def patiently(call: Callable[[], T], patience: Patience, what: str) -> T:
    """``call()``, asked again while the server is busy or away.

    Raises:
        Refused: any other HTTP error.
        RunFailed: it stayed busy or away for longer than ``patience``.
    """
    from requests.exceptions import HTTPError, RequestException

    delay, end = patience.first, time.monotonic() + patience.seconds
    waited = 0.0
    while True:
        try:
            return call()
        except HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status != 429 and status < 500:
                raise Refused(status, str(error)) from None
            reason, wait = f"HTTP {status}", retry_after(error.response) or delay
        except (RequestException, ConnectionError, TimeoutError) as error:
            reason, wait = type(error).__name__, delay
        if time.monotonic() + wait > end or waited + wait > patience.seconds:
            raise RunFailed(
                "Kaggle",
                f"no answer to {what} for {patience.seconds / 60:.0f} minutes ({reason}).",
                "Nothing is lost; run the same command again later.",
            )
        patience.sleep(wait)
        waited += wait
        delay = min(delay * 2, patience.longest)


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
