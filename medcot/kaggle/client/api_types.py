"""Kaggle's answers as records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Quota:
    """Weekly GPU hours. ``reserved_h`` is held by sessions that are running."""

    used_h: float
    reserved_h: float
    allowed_h: float
    refresh: datetime | None

    @property
    def left_h(self) -> float:
        """Hours that are neither used nor reserved."""
        return max(0.0, self.allowed_h - self.used_h - self.reserved_h)


@dataclass(frozen=True, slots=True)
class RemoteKernel:
    """A kernel on Kaggle: the number and the source of its newest version."""

    version: int
    source: str


@dataclass(frozen=True, slots=True)
class SaveAnswer:
    """Every field of the answer to a push, whose HTTP status 200 does not mean success.

    ``invalid`` maps a kind of source to the names that Kaggle did not accept.
    """

    ref: str
    url: str
    version: int
    error: str
    invalid: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """The state of one version's session in Kaggle's own word, and its failure message."""

    state: str
    message: str


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file in a session's output, and the signed address to download it from."""

    name: str
    url: str
