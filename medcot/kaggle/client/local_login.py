"""Find this machine's Kaggle login without asking Kaggle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILES = ("kaggle.json", "credentials.json", "access_token", "access_token.txt")
"""Names of login files, in the order in which the client looks for them."""


@dataclass(frozen=True, slots=True)
class Login:
    """A login. ``where`` names a variable or a file; ``user`` is empty for an access token."""

    where: str
    user: str = ""


def find_login(environ: Mapping[str, str] | None = None) -> Login | None:
    """Return the login that Kaggle's client will use, or None. Only Kaggle knows if it is valid."""
    environ = os.environ if environ is None else environ
    user = environ.get("KAGGLE_USERNAME", "").strip()
    if environ.get("KAGGLE_API_TOKEN", "").strip():
        return Login("KAGGLE_API_TOKEN", user)
    if user and environ.get("KAGGLE_KEY", "").strip():
        return Login("KAGGLE_KEY", user)
    for folder in _folders(environ):
        for path in (folder / name for name in FILES):
            if path.is_file():
                return Login(str(path), _user_in(path))
    return None


def _folders(environ: Mapping[str, str]) -> list[Path]:
    if chosen := environ.get("KAGGLE_CONFIG_DIR"):
        return [Path(chosen)]
    home = Path(environ.get("HOME") or Path.home())
    return [home / ".kaggle", Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"]


def _user_in(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["username"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
