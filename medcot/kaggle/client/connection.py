"""Kaggle's own client: signed in, kept quiet, and given timeouts."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from medcot.errors import InputError
from medcot.kaggle.client.local_login import WAYS_TO_LOG_IN, marked_login
from medcot.kaggle.client.retry import RequestRefused, RetryPolicy, call_with_retries
from medcot.network import require_network

CONNECT_S, READ_S = 10.0, 90.0
"""Timeouts, which the client lacks. A log that is silent for READ_S is read anew."""

KAGGLE = "https://www.kaggle.com"
SETTINGS = f"{KAGGLE}/settings"


def open_client(policy: RetryPolicy) -> Any:
    """Return Kaggle's ``KaggleApi``, signed in with this machine's credentials.

    Raises:
        InputError: the client is not installed, there are no valid credentials, or
            ``MEDCOT_OFFLINE`` is on.
    """
    if os.environ.get("KAGGLE_API_ENVIRONMENT") not in ("LOCALHOST", "TEST"):
        require_network("Kaggle", KAGGLE)
    # Importing the package signs in; without credentials it prints instructions and exits.
    with contextlib.redirect_stdout(io.StringIO()), _readable_login():
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError:
            raise InputError(
                "Kaggle", "its client is not installed", "run pip install 'medcot[kaggle]'"
            ) from None
        api = KaggleApi()
        _set_timeouts()
        try:
            call_with_retries(api.authenticate, policy, "the sign-in")
        except SystemExit:
            raise credentials_error("none found, or Kaggle does not know the token") from None
        except RequestRefused as error:
            raise credentials_error(f"refused by Kaggle ({error.status})") from None
    return api


@contextlib.contextmanager
def _readable_login() -> Iterator[None]:
    """Give the client a login file's contents as variables where it could not read the file."""
    added = marked_login()
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def credentials_error(got: str) -> InputError:
    """Make the error for credentials that are missing or refused."""
    return InputError(
        "Kaggle credentials",
        got,
        f"{WAYS_TO_LOG_IN} (tokens and keys: {SETTINGS}, API)",
    )


def version_label(version: int) -> str:
    """Return Kaggle's name for a version; the API answers the bare number with 404."""
    return f"v{version}"


def read_log(text: str) -> Iterator[str]:
    """Yield the texts of a log, which is a JSON list of {stream_name, time, data} or plain text."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = [{"data": f"{line}\n"} for line in text.splitlines()]
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict) and isinstance(entry.get("data"), str):
            yield entry["data"]


@cache
def _set_timeouts() -> None:
    """Give every request without a timeout one: the client sends some by sessions of its own."""
    from requests.adapters import HTTPAdapter

    send = HTTPAdapter.send

    def send_with_timeout(adapter: HTTPAdapter, request: Any, *given: Any, **options: Any) -> Any:
        options["timeout"] = options.get("timeout") or (CONNECT_S, READ_S)
        return send(adapter, request, *given, **options)

    cast("Any", HTTPAdapter).send = send_with_timeout
