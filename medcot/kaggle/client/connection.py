"""Kaggle's own client: signed in, kept quiet, and made to give up waiting."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

from medcot.errors import InputError
from medcot.kaggle.client.retry import Patience, Refused, patiently

CONNECT_S, READ_S = 10.0, 90.0
"""The client by itself waits for ever. A log silent for READ_S is cut and taken up again."""

SETTINGS = "https://www.kaggle.com/settings"


def open_client(patience: Patience) -> Any:
    """Kaggle's ``KaggleApi``, signed in with what this machine has.

    Raises:
        InputError: the client is not installed, or there are no credentials that work.
    """
    # Importing the package signs in at once, prints how to where it can't, and ends the program.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError:
            raise InputError(
                "Kaggle", "its client is not installed", "run pip install 'medcot[kaggle]'"
            ) from None
        api = KaggleApi()
        _limit_waiting(api)
        try:
            patiently(api.authenticate, patience, "the sign-in")
        except SystemExit:
            raise bad_credentials("none found, or Kaggle does not know the token") from None
        except Refused as error:
            raise bad_credentials(f"refused by Kaggle ({error.status})") from None
    return api


def bad_credentials(got: str) -> InputError:
    """What to say of credentials that are absent or refused."""
    return InputError(
        "Kaggle credentials",
        got,
        "set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or save kaggle.json "
        f"(create one at {SETTINGS}, API)",
    )


def label(version: int) -> str:
    """How Kaggle's API names a version; the bare number is answered with 404."""
    return f"v{version}"


def log_lines(text: str) -> Iterator[str]:
    """The texts in a log, which is a JSON list of {stream_name, time, data}, or plain text."""
    try:
        entries = json.loads(text)
    except ValueError:
        entries = [{"data": f"{line}\n"} for line in text.splitlines()]
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict) and isinstance(entry.get("data"), str):
            yield entry["data"]


def _limit_waiting(api: Any) -> None:
    """Make every call of ``api``, those inside its own methods too, give up a silent server."""
    from requests.adapters import HTTPAdapter

    class Limited(HTTPAdapter):
        def send(self, request: Any, *given: Any, **options: Any) -> Any:
            options["timeout"] = options.get("timeout") or (CONNECT_S, READ_S)
            return super().send(request, *given, **options)

    build = api.build_kaggle_client

    def build_limited() -> Any:
        client = build()
        http = client.http_client()
        http._init_session()
        http._session.mount("https://", Limited())
        http._session.mount("http://", Limited())
        return client

    api.build_kaggle_client = build_limited
