"""Resolves secrets from the environment and stored logins, and hides them in whatever leaves here.

Standard library only: a session on Kaggle uses it before anything is installed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import netrc
import os
import re
import sys
import traceback
from collections.abc import Generator, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import quote, unquote, urlsplit

from medcot.errors import InputError

TOKENS = ("HF_TOKEN", "HUGGINGFACE_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables that may hold a hub token, in order; they precede the client's stored login."""

JUDGE_LOGIN = "MEDCOT_JUDGE_LOGIN"
"""Variable with ``user:password`` for the judge's endpoint. An address never keeps them."""

SERVE_TOKEN = "MEDCOT_SERVE_TOKEN"
"""Variable with the token of ``medcot serve``, for the server and for ``medcot ask --server``."""

RESOLVED = (
    *TOKENS, "WANDB_API_KEY", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN",
    "OPENAI_API_KEY", JUDGE_LOGIN, SERVE_TOKEN,
)  # fmt: skip
"""Variables that are stripped and checked before any library reads them."""

OUR_VARIABLES = (
    "HF_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "KAGGLE_KEY",
    "KAGGLE_API_TOKEN",
    "KAGGLE_USER_SECRETS_TOKEN",
    JUDGE_LOGIN,
    SERVE_TOKEN,
)
"""Variables whose values are secrets even if they are short."""

_SECRET_NAME = re.compile(
    r"(?i)(^|[_-])(api_?key|key|token|jwt|secret|password|passwd|credentials?)($|[_-])"
)
_SHORTEST_OWN, _SHORTEST_OTHER = 6, 12
"""Shortest value, in characters, that counts as a secret. Other variables are given more: a local
judge takes any word for ``OPENAI_API_KEY``, such as ``ollama``."""

_LOGIN_IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@\"'<>]*:[^/\s@\"'<>]+(?=@)")

PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{16,}")),
    ("a Kaggle token", re.compile(r"\bKGAT_[A-Za-z0-9_-]{16,}")),
    ("a W&B key", re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{16,}")),
    ("an OpenAI or Anthropic key", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    ("a GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})")),
    ("a GitLab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{16,}")),
    ("an AWS key", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("a Slack token", re.compile(r"\bxox[baprs]-[A-Za-z0-9-]{10,}")),
    ("a Google key", re.compile(r"\bAIza[0-9A-Za-z_-]{30,}")),
    ("a signed token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[\w-]{8,}")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("an authorization header", re.compile(r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9._~+/-]{20,}=*")),
    ("credentials in an address", re.compile(r"://[^/\s:@\"']+:[^/\s:@\"']{6,}@")),
    (
        "a secret written out",
        re.compile(
            r"(?i)(?:api_?key|token|secret|passw(?:or)?d|credential|\bkey|login)s?[\"']?\s*"
            r"(?:\]\s*)?[:=(]\s*[\"'](?=[^\"']*\d)(?=[^\"']*[A-Za-z])[A-Za-z0-9_./+~=-]{20,}[\"']"
        ),
    ),
)
"""What a secret looks like, for those whose value is not known here."""


_AROUND = " \t\r\n\v\f\ufeff"
"""Characters that files and copied values carry around a secret, and that are no part of it."""


def strip_secret(value: str) -> str:
    """Return ``value`` without space, line ends and byte order marks around it."""
    return value.strip(_AROUND)


def resolve_secret(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the value of the variable ``name`` without surrounding space; blank means absent.

    Raises:
        InputError: a line feed or another character within that no header can carry. The message
            names the variable and never its value.
    """
    value = strip_secret((os.environ if environ is None else environ).get(name, ""))
    if not value:
        return None
    if any(character in value for character in "\r\n"):
        raise InputError(name, "there is a line feed inside", "set it to the bare value")
    if not value.isascii() or not value.isprintable():
        got = "there is a character that is not printable ASCII"
        raise InputError(name, got, "copy the value again")
    return value


SHORTEST_TOKEN = 16
"""Characters of a token that nobody guesses."""


def read_token_file(path: str) -> str:
    """Return the token in the file ``path``, which visitors of a server need.

    Raises:
        InputError: a file that cannot be read, or a token that can be guessed.
    """
    where = f"--token-file {path}"
    try:
        with Path(path).open(encoding="utf-8") as file:
            token = file.read(4096).strip()
    except OSError as error:
        got = error.strerror or str(error)
        raise InputError(where, got, "expected a readable file") from None
    except UnicodeDecodeError:
        raise InputError(where, "it is not UTF-8", "expected one line of text") from None
    if len(token) < SHORTEST_TOKEN or not token.isprintable():
        needs = f"expected one line of at least {SHORTEST_TOKEN} random characters"
        raise InputError(where, f"found {len(token)} characters", needs)
    return token


def serve_token() -> str | None:
    """Return the token of ``medcot serve`` in the environment, None without one.

    Raises:
        InputError: it can be guessed, or no header can carry it.
    """
    token = resolve_secret(SERVE_TOKEN)
    if token is not None and len(token) < SHORTEST_TOKEN:
        needs = f"expected at least {SHORTEST_TOKEN} random characters"
        raise InputError(SERVE_TOKEN, f"found {len(token)} characters", needs)
    return token


def hub_token() -> str | None:
    """Return the environment's hub token, or None: the client then uses its stored login."""
    return next((token for name in TOKENS if (token := resolve_secret(name))), None)


def prepare_credentials(environ: MutableMapping[str, str] | None = None) -> None:
    """Clean the variables that libraries read for themselves, before any is imported.

    Values are stripped, blank ones removed, and the hub's token is put where its libraries look.

    Raises:
        InputError: a value that no request could carry.
    """
    environ = os.environ if environ is None else environ
    for name in RESOLVED:
        if name not in environ:
            continue
        if (value := resolve_secret(name, environ)) is None:
            del environ[name]
        elif value != environ[name]:
            environ[name] = value
    token = next((environ[name] for name in TOKENS if name in environ), None)
    if token is not None:
        environ["HF_TOKEN"] = token


def take_judge_login(url: str) -> str:
    """Return ``url`` without user and password, which are kept in ``MEDCOT_JUDGE_LOGIN``.

    So no config, report or log ever holds them, and the requests still do.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    login, found, host = parts.netloc.rpartition("@")
    if not found:
        return url
    if ":" in login:
        os.environ[JUDGE_LOGIN] = unquote(login)
    return parts._replace(netloc=host).geturl()


def judge_headers() -> dict[str, str]:
    """Return the headers that sign in at the judge's endpoint, where a login was given."""
    login = resolve_secret(JUDGE_LOGIN)
    if login is None:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def has_hub_token() -> bool:
    """Return whether the hub's libraries will find a token."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    stored = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return hub_token() is not None or stored.is_file()


def has_wandb_login() -> bool:
    """Return whether the W&B client will find a key, in the environment or the netrc file."""
    if resolve_secret("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        known = netrc.netrc(str(path)) if path.is_file() else None
    except (netrc.NetrcParseError, OSError):
        return False
    return known is not None and known.authenticators(host.split(":")[0]) is not None


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that must not be sent or shown, and a name for it that may."""

    name: str
    value: str = field(repr=False)


def known_secrets(
    environ: Mapping[str, str] | None = None, home: Path | None = None
) -> list[Secret]:
    """Return the secrets in this machine's environment, account files and netrc, longest first."""
    environ = os.environ if environ is None else environ
    home = Path(environ.get("HOME") or Path.home()) if home is None else home
    found = [*_from_environment(environ), *_from_files(environ, home), *_from_netrc(home)]
    whole = {secret.value: secret for secret in reversed(found)}
    return sorted(whole.values(), key=lambda secret: (-len(secret.value), secret.name))


class Redactor:
    """Hides the values of secrets and everything that looks like a token in a text."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        pairs = [(form, secret.name) for secret in secrets for form in forms(secret.value)]
        self._pairs = sorted(pairs, key=lambda pair: -len(pair[0]))

    def __call__(self, text: str) -> str:
        """Return ``text`` with ``[hidden: NAME]`` in place of each secret."""
        text = self.hide_values(text)
        for what, shape in PATTERNS:
            text = shape.sub(f"[hidden: {what}]", text)
        return text

    def hide_values(self, text: str) -> str:
        """Hide known values and logins in addresses only: data may look like a token."""
        for form, name in self._pairs:
            if form in text:
                text = text.replace(form, f"[hidden: {name}]")
        if "…" in text:
            text = self._hide_cut_values(text)
        return _LOGIN_IN_ADDRESS.sub("[hidden]", text) if "://" in text else text

    def _hide_cut_values(self, text: str) -> str:
        """Hide what is left of a value where a message was shortened."""
        *parts, last = text.split("…")
        for index, part in enumerate(parts):
            for form, name in self._pairs:
                lengths = range(min(len(form), len(part)), _SHORTEST_OWN - 1, -1)
                length = next((n for n in lengths if part.endswith(form[:n])), 0)
                if length:
                    parts[index] = part = f"{part[:-length]}[hidden: {name}]"
        return "…".join([*parts, last])


def redact(text: str) -> str:
    """Return ``text`` with the secrets of this machine, and what looks like one, hidden."""
    return _redactor(_secret_variables())(text)


def redact_values(text: str) -> str:
    """Return ``text`` with the secrets of this machine hidden, and nothing else changed."""
    return _redactor(_secret_variables()).hide_values(text)


def redact_streams() -> None:
    """Hide secrets in everything that this process prints from now on."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _RedactingStream(stream)) for stream in streams)


@contextlib.contextmanager
def redacted_output() -> Generator[None]:
    """Hide secrets in everything that this process prints inside, whichever library prints it.

    Tracebacks, warnings and other libraries' logs go through ``sys.stdout`` and ``sys.stderr``. An
    exception that is nobody's input error is printed here, redacted, and ends the process with 1.
    """
    before = sys.stdout, sys.stderr
    redact_streams()
    try:
        yield
    except Exception:  # noqa: BLE001 - the interpreter would print it as it is
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
    finally:
        sys.stdout, sys.stderr = before


class _RedactingStream:
    """A text stream that hides secrets in what is written to it, and is otherwise the one below."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact_values(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _secret_variables() -> tuple[tuple[str, str], ...]:
    """Return what known secrets depend on: variables that hold one or say where files are."""
    places = ("HOME", "HF_HOME", "XDG_CONFIG_HOME", "KAGGLE_CONFIG_DIR")
    return tuple(
        (name, value)
        for name, value in os.environ.items()
        if name in OUR_VARIABLES or name in places or _SECRET_NAME.search(name)
    )


@lru_cache(maxsize=8)
def _redactor(variables: tuple[tuple[str, str], ...]) -> Redactor:
    return Redactor(known_secrets(dict(variables)))


def _from_environment(environ: Mapping[str, str]) -> list[Secret]:
    found: list[Secret] = []
    for name, value in environ.items():
        own = name in OUR_VARIABLES
        if own or _SECRET_NAME.search(name):
            if os.path.isfile(value):  # noqa: PTH113 - a token may be longer than a file's name
                value = _read(Path(value)).strip()
            shortest = _SHORTEST_OWN if own else _SHORTEST_OTHER
            found += _split(name, value, shortest)
            if name == JUDGE_LOGIN:
                found += _split(name, value.partition(":")[2], shortest)
    return found


def _from_files(environ: Mapping[str, str], home: Path) -> list[Secret]:
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    hub = Path(environ.get("HF_HOME") or home / ".cache" / "huggingface")
    folders = [home / ".kaggle", config / "kaggle", Path(environ.get("KAGGLE_CONFIG_DIR") or ".")]
    files = [hub / "token", home / ".huggingface" / "token"]
    for folder in folders:
        files += [folder / "access_token", folder / "access_token.txt"]
    found = [
        secret
        for path in files
        for secret in _split(str(path.name), _read(path).strip(), _SHORTEST_OWN)
    ]
    for folder in folders:
        for name in ("kaggle.json", "credentials.json"):
            found += _from_json(name, _read(folder / name))
    return found


def _from_json(name: str, text: str) -> list[Secret]:
    try:
        loaded: Any = json.loads(text)
    except (ValueError, RecursionError):
        return []
    values = cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else {}
    return [
        Secret(f"{key} in {name}", value)
        for key, value in values.items()
        if isinstance(value, str) and _SECRET_NAME.search(key) and len(value) >= _SHORTEST_OWN
    ]


def _from_netrc(home: Path) -> list[Secret]:
    try:
        hosts = netrc.netrc(str(home / ".netrc")).hosts
    except (OSError, netrc.NetrcParseError):
        return []
    return [
        Secret(f"the netrc password for {host}", password)
        for host, (_, _, password) in hosts.items()
        if password and len(password) >= _SHORTEST_OWN
    ]


def _split(name: str, value: str, shortest: int) -> list[Secret]:
    """Make one secret of each line: a log shows a key of several lines one line at a time."""
    lines = {line.strip() for line in value.splitlines()}
    return [Secret(name, line) for line in sorted(lines) if len(line) >= shortest]


def forms(value: str) -> list[str]:
    """Return the forms of ``value``: plain, quoted, in CSV, in a URL, in base64 at any offset."""
    forms = {value, repr(value)[1:-1], value.replace('"', '""'), quote(value, safe="")}
    forms |= {json.dumps(value, ensure_ascii=plain)[1:-1] for plain in (True, False)}
    data = value.encode()
    if len(data) >= _SHORTEST_OTHER:
        for offset in range(3):
            whole = base64.b64encode(b"\0" * offset + data).decode()
            # The first group holds bits of the padding; the last may be shared with what follows.
            forms.add(whole[4 if offset else 0 : len(whole) - 4])
    return [form for form in forms if len(form) >= _SHORTEST_OWN]


def decode_text(content: bytes) -> str:
    """Decode a small file as people save it: UTF-8, or UTF-16 as PowerShell writes it.

    A byte order mark is left out.
    """
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if marked else "utf-8-sig", errors="replace")


def _read(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except OSError:
        return ""
