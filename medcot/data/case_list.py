"""Holds the cases of one source: in memory if they are few, in an Arrow file from thousands on.

What splitting and looking up need of every case (its id, and where its question's hash falls) is
always in memory, about 90 bytes a case; texts on disk are read when they are used.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, overload

from medcot.data.arrow import RecordBatch, load_arrow
from medcot.data.store import ArrowRows, Facts
from medcot.records import Case, Claim, Turn

IN_MEMORY = 1 << 24
"""Characters of cases held in memory; more of them, about 5,000 cases, go to a file."""

_COLUMNS = ("id", "question", "thought", "response", "language", "source", "specialty", "reference")
_AS_JSON = ("claims", "turns")


class StoredCases(ArrowRows[Case]):
    """Cases as text columns; claims and turns, which few cases have, as JSON."""

    FILE = "cases.arrow"

    @classmethod
    def schema(cls) -> Any:
        """Return the Arrow schema."""
        pa = load_arrow()
        return pa.schema([(name, pa.string()) for name in (*_COLUMNS, *_AS_JSON)])

    @classmethod
    def size_of(cls, row: Case) -> int:
        """Return an upper bound of the row's size in bytes."""
        return 4 * _characters(row)

    @classmethod
    def encode(cls, rows: list[Case]) -> RecordBatch:
        """Return the cases as an Arrow batch."""
        pa = load_arrow()
        columns = [[getattr(case, name) for case in rows] for name in _COLUMNS]
        claims = [_claims_to_json(case.claims) for case in rows]
        turns = [_turns_to_json(case.turns) for case in rows]
        arrays = [pa.array(column, pa.string()) for column in (*columns, claims, turns)]
        return pa.RecordBatch.from_arrays(arrays, schema=cls.schema())

    def decode(self, batch: RecordBatch, first: int) -> list[Case]:
        """Return copies of a batch's cases."""
        columns = [batch.column(name).to_pylist() for name in _COLUMNS]
        claims = [_claims_from_json(text) for text in batch.column("claims").to_pylist()]
        turns = [_turns_from_json(text) for text in batch.column("turns").to_pylist()]
        return [Case(*values) for values in zip(*columns, claims, turns, strict=True)]


class CaseList(Sequence[Case]):
    """Cases in file order.

    ``unit_hashes`` are their questions' (see :func:`medcot.data.cases.unit_hash`); ``fingerprint``
    is a SHA-256 over everything of the cases that a run can depend on, in order.
    """

    def __init__(
        self,
        cases: Sequence[Case] = (),
        ids: Sequence[str] = (),
        unit_hashes: Sequence[float] = (),
        fingerprint: str = "",
    ) -> None:
        self.ids, self.unit_hashes, self.fingerprint = ids, unit_hashes, fingerprint
        self._cases = cases

    @classmethod
    def load(cls, name: str) -> tuple[CaseList, Facts] | None:
        """Open a cache entry, or return None where there is none."""
        if (found := StoredCases.load(name, needs=("ids", "unit_hashes", "fingerprint"))) is None:
            return None
        cases, facts = found
        hashes = array("d", facts.pop("unit_hashes"))
        return cls(cases, facts.pop("ids"), hashes, facts.pop("fingerprint")), facts

    def save(self, name: str, facts: Facts) -> None:
        """Save the cases and ``facts`` as a cache entry if the cases are in a file."""
        if isinstance(self._cases, StoredCases):
            hashes = list(self.unit_hashes)
            own = {"ids": self.ids, "unit_hashes": hashes, "fingerprint": self.fingerprint}
            self._cases.save(name, own | facts)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | Sequence[Case]:
        return self._cases[index]

    def __deepcopy__(self, memo: Any) -> CaseList:
        return self


class CaseSubset(Sequence[Case]):
    """Some of ``cases``, by their indices, read when they are used."""

    def __init__(self, cases: Sequence[Case], indices: Iterable[int]) -> None:
        self.cases = cases
        self.indices = array("q", indices)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        if isinstance(index, slice):
            return [self.cases[at] for at in self.indices[index]]
        return self.cases[self.indices[index]]


def hold_cases(cases: Iterable[Case]) -> Sequence[Case]:
    """Read all of ``cases`` into memory, or into a scratch file once they exceed ``IN_MEMORY``.

    Raises:
        RunFailed: the disk is full.
    """
    held: list[Case] = []
    size = 0
    remaining = iter(cases)
    for case in remaining:
        held.append(case)
        size += _characters(case)
        if size > IN_MEMORY:
            return StoredCases.write(chain(_emptying(held), remaining))
    return held


def list_case_ids(cases: Sequence[Case]) -> Sequence[str]:
    """Return the ids of the cases, without reading their texts where they are on disk."""
    return cases.ids if isinstance(cases, CaseList) else [case.id for case in cases]


def select_cases(cases: Sequence[Case], ids: Iterable[str]) -> CaseSubset:
    """Return the cases that have one of the ids, in their own order."""
    wanted = frozenset(ids)
    return CaseSubset(cases, (at for at, id_ in enumerate(list_case_ids(cases)) if id_ in wanted))


def _emptying(held: list[Case]) -> Iterator[Case]:
    """Yield cases that are kept no longer: they are in the file then."""
    yield from held
    held.clear()


def _characters(case: Case) -> int:
    before = sum(len(turn.content) for turn in case.turns)
    return before + len(case.question) + len(case.thought) + len(case.response)


def _turns_to_json(turns: tuple[Turn, ...]) -> str:
    return json.dumps([[turn.role, turn.content] for turn in turns]) if turns else ""


def _turns_from_json(text: str) -> tuple[Turn, ...]:
    plain: list[Any] = json.loads(text) if text else []
    return tuple(Turn(role, content) for role, content in plain)


def _claims_to_json(claims: tuple[Claim, ...]) -> str:
    plain = [[claim.text, claim.states, claim.contradicts] for claim in claims]
    return json.dumps(plain) if plain else ""


def _claims_from_json(text: str) -> tuple[Claim, ...]:
    plain: list[Any] = json.loads(text) if text else []
    return tuple(Claim(one[0], tuple(one[1]), tuple(one[2])) for one in plain)
