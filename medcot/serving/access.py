"""The token that every request needs: given, or made and told once."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from medcot.credentials import read_token_file, serve_token
from medcot.errors import InputError


@dataclass(frozen=True, slots=True)
class Access:
    """Who is answered. ``given`` is False for a token that was made for this one server."""

    token: str = field(repr=False)
    given: bool

    def allows(self, authorization: str) -> bool:
        """Return whether a request's Authorization header holds the token."""
        kind, _, value = authorization.partition(" ")
        told = value.strip().encode("utf-8", "replace")
        return kind.lower() == "bearer" and hmac.compare_digest(told, self.token.encode())


def decide_access(token_file: Path | None) -> Access:
    """Return the token: from the file, from the environment, or a new one.

    A file that does not exist gets the new token, readable by this user alone.

    Raises:
        InputError: A token that can be guessed, or a file that cannot be read or written.
    """
    if token_file is not None:
        if token_file.exists():
            return Access(read_token_file(str(token_file)), given=True)
        return Access(_write_token(token_file), given=True)
    token = serve_token()
    return Access(token or secrets.token_urlsafe(32), given=token is not None)


def _write_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{token}\n")
    except OSError as error:
        got = error.strerror or str(error)
        raise InputError(f"--token-file {path}", got, "name a file in a writable folder") from None
    return token
