"""Find secrets in what is about to be sent, and hide them in what is about to be shown."""

from __future__ import annotations

import base64
import json
import netrc
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

OUR_VARIABLES = (
    "HF_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "KAGGLE_KEY",
    "KAGGLE_API_TOKEN",
    "KAGGLE_USER_SECRETS_TOKEN",
)
"""Variables whose values are secrets even if they are short."""

_SECRET_NAME = re.compile(
    r"(?i)(^|[_-])(api_?key|key|token|jwt|secret|password|passwd|credentials?)($|[_-])"
)
_SHORTEST_OWN, _SHORTEST_OTHER = 6, 12

_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
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


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that must not be sent or shown, and a name for it that may."""

    name: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecretMatch:
    """Where a secret was found, and which one; never its value."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def known_secrets(
    environ: Mapping[str, str] | None = None, home: Path | None = None
) -> list[Secret]:
    """Return the secrets in this machine's environment, account files and netrc, longest first."""
    environ = os.environ if environ is None else environ
    home = Path(environ.get("HOME") or Path.home()) if home is None else home
    found = [*_from_environment(environ), *_from_files(environ, home), *_from_netrc(home)]
    whole = {secret.value: secret for secret in reversed(found)}
    return sorted(whole.values(), key=lambda secret: (-len(secret.value), secret.name))


def find_secrets(where: str, content: bytes | str, secrets: Iterable[Secret]) -> list[SecretMatch]:
    """Find secrets in ``content`` by their value (plain or encoded) and by their pattern."""
    text = content if isinstance(content, str) else content.decode("utf-8", errors="replace")
    matches = []
    for secret in secrets:
        at = min((text.find(form) for form in _forms(secret.value) if form in text), default=-1)
        if at >= 0:
            matches.append(SecretMatch(_place(where, text, at), f"the value of {secret.name}"))
    for what, shape in _PATTERNS:
        if match := shape.search(text):
            matches.append(
                SecretMatch(_place(where, text, match.start()), f"what looks like {what}")
            )
    return matches


class Redactor:
    """Hides the values of secrets and everything that looks like a token in a text."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        pairs = [(form, secret.name) for secret in secrets for form in _forms(secret.value)]
        self._pairs = sorted(pairs, key=lambda pair: -len(pair[0]))

    def __call__(self, text: str) -> str:
        """Return ``text`` with ``[hidden: NAME]`` in place of each secret."""
        for form, name in self._pairs:
            text = text.replace(form, f"[hidden: {name}]")
        for what, shape in _PATTERNS:
            text = shape.sub(f"[hidden: {what}]", text)
        return text


def _from_environment(environ: Mapping[str, str]) -> list[Secret]:
    found = []
    for name, value in environ.items():
        own = name in OUR_VARIABLES
        if own or _SECRET_NAME.search(name):
            if Path(value[:1024]).is_file():
                value = _read(Path(value)).strip()
            shortest = _SHORTEST_OWN if own else _SHORTEST_OTHER
            found += _split(name, value, shortest)
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
        values: Any = json.loads(text)
    except ValueError:
        return []
    if not isinstance(values, dict):
        return []
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


def _forms(value: str) -> list[str]:
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


def _place(where: str, text: str, at: int) -> str:
    return f"{where}, line {text.count(chr(10), 0, at) + 1}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
