"""The cases of one source: in memory while they are few, in a file from some thousands on.

What splitting and finding need of every case (its id and where its question falls) is always at
hand, 90 bytes a case or so; texts are read when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, overload

from medcot.data.arrow_file import RowFile
from medcot.data.disk_cache import Scratch
from medcot.records import Case, Claim

IN_MEMORY = 1 << 24
"""Characters of cases held in memory; more of them, about 5,000 cases, go to a file."""

FILE, INDEX, PLACES = "cases.arrow", "index.json", "places.f64"

_COLUMNS = ("id", "question", "thought", "response", "language", "source", "specialty", "reference")


class CaseFile(RowFile[Case]):
    """Cases as rows of text columns; claims, which few have, as JSON."""

    @classmethod
    @cache
    def schema(cls) -> Any:
        import pyarrow as pa

        return pa.schema([(name, pa.string()) for name in (*_COLUMNS, "claims")])

    @classmethod
    def pack(cls, rows: list[Case]) -> Any:
        import pyarrow as pa

        columns = [[getattr(case, name) for case in rows] for name in _COLUMNS]
        claims = [_claims_to_text(case.claims) for case in rows]
        arrays = [pa.array(column, pa.string()) for column in (*columns, claims)]
        return pa.RecordBatch.from_arrays(arrays, schema=cls.schema())

    @classmethod
    def unpack(cls, batch: Any) -> list[Case]:
        columns = [batch.column(name).to_pylist() for name in _COLUMNS]
        claims = [_claims_from_text(text) for text in batch.column("claims").to_pylist()]
        return [Case(*values) for values in zip(*columns, claims, strict=True)]


class CaseList(Sequence[Case]):
    """Cases in the order they were added, each with the digest of its question.

    ``places`` are in [0, 1), by the digests (see :func:`place_of`); ``fingerprint`` covers all that
    a run can depend on, in order.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.places = array("d")
        self._held: list[Case] = []
        self._size = 0
        self._file: CaseFile | None = None
        self._scratch: Scratch | None = None
        self._digest: Any = hashlib.sha256()
        self._fingerprint = ""

    def add(self, case: Case, digest: bytes) -> None:
        """Add a case whose question has this digest."""
        self.ids.append(case.id)
        self.places.append(place_of(digest))
        add_to_fingerprint(self._digest, case)
        size = len(case.question) + len(case.thought) + len(case.response)
        self._size += size
        if self._file is not None:
            self._file.append(case, 4 * size)
        else:
            self._held.append(case)
            if self._size > IN_MEMORY:
                self._move_to_file()

    def finish(self) -> None:
        """Nothing is added after this."""
        if self._file is not None:
            self._file.finish()
        if self._digest is not None:
            self._fingerprint, self._digest = self._digest.hexdigest(), None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the finished list."""
        return self._fingerprint

    def keep(self, name: str, facts: dict[str, Any]) -> None:
        """Leave the finished list and ``facts`` in the cache, if it is large enough to be there."""
        if self._file is None or self._scratch is None:
            return
        index = {
            "ids": self.ids,
            "fingerprint": self._fingerprint,
            "file": self._file.places,
            "facts": facts,
        }
        more = {INDEX: json.dumps(index).encode(), PLACES: self.places.tobytes()}
        self._scratch.keep(name, more)

    @classmethod
    def kept(cls, folder: Path) -> tuple[CaseList, dict[str, Any]]:
        """The list and the facts of a cache entry.

        Raises:
            OSError, ValueError, KeyError: it is no such entry.
        """
        index = json.loads((folder / INDEX).read_bytes())
        found = cls()
        found.ids, found._fingerprint = index["ids"], index["fingerprint"]
        found.places.frombytes((folder / PLACES).read_bytes())
        found._file, found._digest = CaseFile(folder / FILE, index["file"]), None
        return found, index["facts"]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Case]:
        return iter(self._held if self._file is None else self._file)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        return self._held[index] if self._file is None else self._file[index]

    def __deepcopy__(self, memo: Any) -> CaseList:
        return self

    def _move_to_file(self) -> None:
        self._scratch = Scratch()
        self._file = CaseFile(self._scratch.path / FILE)
        for case in self._held:
            self._file.append(case, 4 * (len(case.question) + len(case.thought)))
        self._held = []


class Picked(Sequence[Case]):
    """Some of ``cases``, by their positions, read when they are asked for."""

    def __init__(self, cases: Sequence[Case], positions: Iterable[int]) -> None:
        self.cases = cases
        self.positions = array("q", positions)

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        if isinstance(index, slice):
            return [self.cases[at] for at in self.positions[index]]
        return self.cases[self.positions[index]]


def ids_of(cases: Sequence[Case]) -> Sequence[str]:
    """The ids of the cases, without reading their texts where that can be spared."""
    return cases.ids if isinstance(cases, CaseList) else [case.id for case in cases]


def cases_with(cases: Sequence[Case], ids: Iterable[str]) -> Picked:
    """Those with one of the ids, in their own order."""
    wanted = frozenset(ids)
    return Picked(cases, (at for at, name in enumerate(ids_of(cases)) if name in wanted))


def place_of(digest: bytes) -> float:
    """Where a question with this digest falls in [0, 1): by its first 8 bytes."""
    return int.from_bytes(digest[:8], "big") / 2**64


def add_to_fingerprint(digest: Any, case: Case) -> None:
    """Let a hash see everything of the case that a run can depend on."""
    parts = (case.id, case.language, case.question, case.thought, case.response)
    digest.update("\x1f".join((*parts, case.reference, repr(case.claims), "\x1e")).encode())


def _claims_to_text(claims: tuple[Claim, ...]) -> str:
    plain = [[claim.text, claim.states, claim.contradicts] for claim in claims]
    return json.dumps(plain) if plain else ""


def _claims_from_text(text: str) -> tuple[Claim, ...]:
    plain = json.loads(text) if text else []
    return tuple(Claim(one[0], tuple(one[1]), tuple(one[2])) for one in plain)
