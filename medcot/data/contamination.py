"""Finds contamination: training rows that overlap an evaluation set.

Two questions overlap when their normalised forms are equal, or when they share windows of 64
characters that cover at least half of the shorter one. Windows are compared by 64-bit polynomial
hashes, all at once, so the work grows with the characters and not with the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medcot.data.text import normalise
from medcot.records import Case

WINDOW = 64
"""Characters of the normalised text that two questions must share without a gap."""

LEAST_SHARE = 0.5
"""Part of the shorter question that shared windows must cover."""

MOST_TEXTS = 32
"""Evaluation texts compared for one window, the shortest first. A phrase that more of them share is
boilerplate ("which of the following is the most likely ..."), and without a bound it would make
the work grow with the pairs."""

CHUNK = 1 << 20
"""Characters of training questions hashed at a time."""

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xD6E8FEB86659FD93)

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

EvaluationTexts = Mapping[str, Sequence[tuple[str, str]]]
"""Evaluation questions that no training row may share: set name to (id, question) pairs."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """One training row and the evaluation question it overlaps.

    ``share`` is the covered part of the shorter of the two questions, 1.0 for the same question.
    """

    case_id: str
    set_name: str
    evaluation_id: str
    kind: Literal["same question", "shared text"]
    share: float


def find_overlaps(cases: Sequence[Case], evaluation_texts: EvaluationTexts) -> list[Overlap]:
    """Return each case's largest overlap with each evaluation set, in the order of the cases."""
    return OverlapFinder(evaluation_texts).find(cases)


class OverlapFinder:
    """:func:`find_overlaps` for cases that come in parts: the evaluation texts are hashed once."""

    def __init__(self, evaluation_texts: EvaluationTexts) -> None:
        self._index = _Index(evaluation_texts)

    def find(self, cases: Iterable[Case]) -> list[Overlap]:
        """Return each case's largest overlap with each evaluation set, in case order."""
        overlaps: list[Overlap] = []
        for chunk in _chunks(cases):
            texts = [normalise(case.question) for case in chunk]
            shared = _shared_windows(texts, self._index)
            for number, (case, text) in enumerate(zip(chunk, texts, strict=True)):
                overlaps += _largest_per_set(case.id, text, shared.get(number), self._index)
        return overlaps


class _Index:
    """The evaluation texts, by their normalised form and by the hashes of their windows."""

    def __init__(self, evaluation_texts: EvaluationTexts) -> None:
        self.names: list[tuple[str, str]] = []
        self.lengths: list[int] = []
        self.equal: dict[str, list[int]] = {}
        texts: list[str] = []
        for set_name, pairs in evaluation_texts.items():
            for evaluation_id, question in pairs:
                text = normalise(question)
                if text:
                    self.equal.setdefault(text, []).append(len(texts))
                    self.names.append((set_name, evaluation_id))
                    self.lengths.append(len(text))
                    texts.append(text)
        hashes, firsts = _window_hashes(texts)
        at, owners, _ = _within_texts(np.arange(hashes.size), firsts)
        hashes = hashes[at]
        order = np.lexsort((np.asarray(self.lengths, np.int64)[owners], hashes))
        self.hashes, self.owners = hashes[order], owners[order]
        bits = max(10, min(26, int(self.hashes.size).bit_length() + 4))
        self.shift = np.uint64(64 - bits)
        self.sieve = np.zeros(1 << bits, np.bool_)
        self.sieve[self.hashes >> self.shift] = True

    def find(self, hashes: Hashes) -> tuple[Indices, Indices, Indices]:
        """Return which of ``hashes`` are in the index, and where their owners begin and end."""
        near = np.flatnonzero(self.sieve[hashes >> self.shift])
        starts = np.searchsorted(self.hashes, hashes[near], "left")
        starts[starts == self.hashes.size] = 0
        same = self.hashes[starts] == hashes[near]
        near, starts = near[same], starts[same]
        return near, starts, np.searchsorted(self.hashes, hashes[near], "right")


@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows of one training question that evaluation texts share."""

    offsets: Indices
    starts: Indices
    ends: Indices


def _shared_windows(texts: Sequence[str], index: _Index) -> dict[int, _Windows]:
    hashes, firsts = _window_hashes(texts)
    found, starts, ends = index.find(hashes)
    at, owners, offsets = _within_texts(found, firsts)
    whole = np.isin(found, at, assume_unique=True)
    starts, ends = starts[whole], ends[whole]
    edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), at.size]
    return {
        int(owners[low]): _Windows(offsets[low:high], starts[low:high], ends[low:high])
        for low, high in pairwise(edges)
        if high > low
    }


def _covered(text: str, windows: _Windows | None, index: _Index) -> Iterator[tuple[int, float]]:
    """Yield evaluation texts that overlap ``text``, and the share of the shorter one.

    What all windows together cover bounds what they can cover with any one evaluation text.
    """
    if windows is None:
        return
    most = _coverage(windows.offsets)
    by_text: dict[int, list[int]] = {}
    spans = zip(
        windows.offsets.tolist(), windows.starts.tolist(), windows.ends.tolist(), strict=True
    )
    for offset, start, end in spans:
        nearby: list[int] = index.owners[start : min(end, start + MOST_TEXTS)].tolist()
        for owner in set(nearby):
            if most >= LEAST_SHARE * min(len(text), index.lengths[owner]):
                by_text.setdefault(owner, []).append(offset)
    for owner, offsets in by_text.items():
        shorter = min(len(text), index.lengths[owner])
        share = _coverage(np.asarray(offsets, np.int64)) / shorter
        if share >= LEAST_SHARE:
            yield owner, round(min(1.0, share), 3)


def _coverage(offsets: Indices) -> int:
    """Count the characters under windows that begin at ``offsets`` (ascending)."""
    return int(np.minimum(np.diff(offsets), WINDOW).sum()) + WINDOW


def _largest_per_set(
    case_id: str, text: str, windows: _Windows | None, index: _Index
) -> list[Overlap]:
    largest: dict[str, Overlap] = {}
    for evaluated in index.equal.get(text, ()):
        set_name, evaluation_id = index.names[evaluated]
        largest.setdefault(
            set_name, Overlap(case_id, set_name, evaluation_id, "same question", 1.0)
        )
    for evaluated, share in _covered(text, windows, index):
        set_name, evaluation_id = index.names[evaluated]
        if set_name not in largest or share > largest[set_name].share:
            largest[set_name] = Overlap(case_id, set_name, evaluation_id, "shared text", share)
    return list(largest.values())


def _chunks(cases: Iterable[Case]) -> Iterator[list[Case]]:
    chunk: list[Case] = []
    size = 0
    for case in cases:
        chunk.append(case)
        size += len(case.question)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _window_hashes(texts: Sequence[str]) -> tuple[Hashes, Indices]:
    """Hash every window of the joined texts; return the hashes and where each text begins.

    With P[i] = sum of c[j] B^j for j < i (mod 2^64, B odd), the windows at i are compared by
    (P[i + 64] - P[i]) B^-i, mixed because low bits of such a sum depend on low bits alone.
    """
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    characters = np.frombuffer(joined, np.uint32).astype(np.uint64)
    firsts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    characters *= _powers(_BASE, characters.size)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(characters)])
    hashes = sums[WINDOW:] - sums[:-WINDOW]
    hashes *= _powers(_INVERSE, hashes.size)
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    return hashes, firsts


def _within_texts(positions: Indices, firsts: Indices) -> tuple[Indices, Indices, Indices]:
    """Keep windows that lie within one text: their positions, texts' numbers and offsets."""
    owners = np.searchsorted(firsts, positions, "right") - 1
    whole = positions + WINDOW <= firsts[owners + 1]
    positions, owners = positions[whole], owners[whole]
    return positions, owners, positions - firsts[owners]


@lru_cache(maxsize=2)
def _power_table(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def _powers(base: int, count: int) -> Hashes:
    """Return ``base`` to the powers 0 to ``count`` - 1, modulo 2^64, from a cached table."""
    return _power_table(base, -(-count // CHUNK) * CHUNK)[:count]
