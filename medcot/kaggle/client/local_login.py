"""Find this machine's Kaggle login without asking Kaggle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.credentials import decode_text, strip_secret

TOKEN_FILES = ("access_token", "access_token.txt")
FILES = (*TOKEN_FILES, "kaggle.json", "credentials.json")
"""Names of login files, in the order in which the client looks for them."""

WAYS_TO_LOG_IN = (
    "run `kaggle auth login`, or save an API token as ~/.kaggle/access_token or in "
    "KAGGLE_API_TOKEN, or a key as ~/.kaggle/kaggle.json or in KAGGLE_USERNAME and KAGGLE_KEY"
)
"""Every way that Kaggle's client knows."""

_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")


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
    folders = _folders(environ)
    if token := _first_file(folders, TOKEN_FILES):
        return Login(str(token), user)
    if user and environ.get("KAGGLE_KEY", "").strip():
        return Login("KAGGLE_KEY", user)
    path = _first_file(folders, FILES)
    return Login(str(path), _user_in(path)) if path else None


def marked_login(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that stand for a login file with a byte order mark, if that is used.

    Windows writes such files, in UTF-16 or UTF-8; Kaggle's client reads neither, and says nothing.
    """
    login = find_login(environ)
    path = Path(login.where) if login else Path()
    if path.name not in FILES or not path.read_bytes().startswith(_MARKS):
        return {}
    if path.suffix != ".json":
        return {"KAGGLE_API_TOKEN": strip_secret(decode_text(path.read_bytes()))}
    values = _read_json(path)
    found = {"KAGGLE_USERNAME": values.get("username"), "KAGGLE_KEY": values.get("key")}
    return {name: strip_secret(value) for name, value in found.items() if isinstance(value, str)}


def _first_file(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    paths = (folder / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)


def _folders(environ: Mapping[str, str]) -> list[Path]:
    if chosen := environ.get("KAGGLE_CONFIG_DIR"):
        return [Path(chosen)]
    home = Path(environ.get("HOME") or Path.home())
    return [home / ".kaggle", Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"]


def _user_in(path: Path) -> str:
    return str(_read_json(path).get("username", ""))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(decode_text(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
