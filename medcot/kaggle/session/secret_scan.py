"""Find secrets in what is about to be sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medcot.credentials import PATTERNS, Secret, forms


@dataclass(frozen=True, slots=True)
class SecretMatch:
    """Where a secret was found, and which one; never its value."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def find_secrets(where: str, content: bytes | str, secrets: Iterable[Secret]) -> list[SecretMatch]:
    """Find secrets in ``content`` by their value (plain or encoded) and by their pattern."""
    text = content if isinstance(content, str) else content.decode("utf-8", errors="replace")
    matches = []
    for secret in secrets:
        at = min((text.find(form) for form in forms(secret.value) if form in text), default=-1)
        if at >= 0:
            matches.append(SecretMatch(_place(where, text, at), f"the value of {secret.name}"))
    for what, shape in PATTERNS:
        if match := shape.search(text):
            matches.append(
                SecretMatch(_place(where, text, match.start()), f"what looks like {what}")
            )
    return matches


def _place(where: str, text: str, at: int) -> str:
    return f"{where}, line {text.count(chr(10), 0, at) + 1}"
