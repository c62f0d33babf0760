"""What Kaggle answers, as named records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Quota:
    """Weekly GPU hours. ``reserved_h`` is held by sessions that run now."""

    used_h: float
    reserved_h: float
    allowed_h: float
    refresh: datetime | None

    @property
    def left_h(self) -> float:
        return max(0.0, self.allowed_h - self.used_h - self.reserved_h)


@dataclass(frozen=True, slots=True)
class KernelOnKaggle:
    """A kernel that exists: its newest version's number and source."""

    version: int
    source: str


@dataclass(frozen=True, slots=True)
class SaveAnswer:
    """Every field of the answer to a push. A 200 says nothing about success."""

    ref: str
    url: str
    version: int
    error: str
    invalid: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Status:
    """One version's session: Kaggle's own word for it, and its failure message."""

    word: str
    message: str


@dataclass(frozen=True, slots=True)
class OutputFile:
    name: str
    url: str
