"""Training rows as tokens, in a file that training reads as it goes along."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np

from medcot.data.arrow_file import RowFile
from medcot.data.disk_cache import Scratch
from medcot.data.tokenization import IGNORED, Encoded

FILE, INDEX = "tokens.arrow", "index.json"


class TokenFile(RowFile[Encoded]):
    """Rows as ``input_ids`` and ``labels``, which trainers take as they are. It knows no ids."""

    @classmethod
    @cache
    def schema(cls) -> Any:
        import pyarrow as pa

        return pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels")])

    @classmethod
    def pack(cls, rows: list[Encoded]) -> Any:
        import pyarrow as pa

        ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        ids, labels = array("i"), array("i")
        for row in rows:
            prompt, completion = row.halves
            ids += prompt + completion
            labels += array("i", [IGNORED]) * len(prompt) + completion
        columns = [pa.ListArray.from_arrays(ends, np.asarray(one)) for one in (ids, labels)]
        return pa.RecordBatch.from_arrays(columns, schema=cls.schema())

    @classmethod
    def unpack(cls, batch: Any) -> list[Encoded]:
        column, labels = batch.column("input_ids"), batch.column("labels")
        ids, learnt = column.values.to_numpy(), labels.values.to_numpy() != IGNORED
        rows: list[Encoded] = []
        ends = column.offsets.to_pylist()
        for start, end in pairwise(ends):
            border = start + int(learnt[start:end].argmax())
            rows.append(Encoded.of_bytes("", ids[start:border], ids[border:end]))
        return rows


class TokenRows(Sequence[Encoded]):
    """Rows on disk, with what is asked of all of them at hand: ids and lengths in tokens.

    ``path`` is the file, an Arrow stream of ``input_ids`` and ``labels``, once it is finished.
    """

    path: Path

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.lengths = array("i")
        self._scratch = Scratch()
        self._file = TokenFile(self._scratch.path / FILE)

    def extend(self, rows: Sequence[Encoded]) -> None:
        """Add rows."""
        for row in rows:
            self.ids.append(row.id)
            self.lengths.append(len(row))
            self._file.append(row, 8 * len(row))

    def finish(self) -> None:
        """Nothing is added after this."""
        self._file.finish()
        self.path = self._scratch.path / FILE

    def keep(self, name: str, facts: dict[str, Any]) -> bool:
        """Leave the finished rows and ``facts`` in the cache; whether they are there now."""
        index = {
            "ids": self.ids,
            "lengths": self.lengths.tolist(),
            "file": self._file.places,
            "facts": facts,
        }
        made = self._scratch
        if not made.keep(name, {INDEX: json.dumps(index).encode()}):
            return False
        self._hold(made.path)
        return True

    @classmethod
    def kept(cls, folder: Path) -> tuple[TokenRows, dict[str, Any]]:
        """The rows and the facts of a cache entry.

        Raises:
            OSError, ValueError, KeyError: it is no such entry.
        """
        index = json.loads((folder / INDEX).read_bytes())
        found = cls.__new__(cls)
        found.ids, found.lengths = index["ids"], array("i", index["lengths"])
        found._file = TokenFile(folder / FILE, index["file"])
        found._hold(folder)
        return found, index["facts"]

    def _hold(self, entry: Path) -> None:
        """Training maps the file by its name, and ``datasets`` may write beside it."""
        self._scratch = Scratch()
        self.path = self._scratch.hold(entry / FILE)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Encoded]:
        for row_id, row in zip(self.ids, self._file, strict=True):
            yield row.named(row_id)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self._file[index].named(self.ids[index])


def ids_of_rows(rows: Sequence[Encoded]) -> Sequence[str]:
    """The rows' ids, without reading their tokens where that can be spared."""
    return rows.ids if isinstance(rows, TokenRows) else [row.id for row in rows]


def lengths_of(rows: Sequence[Encoded]) -> Sequence[int]:
    """The rows' lengths in tokens, without reading them where that can be spared."""
    return rows.lengths if isinstance(rows, TokenRows) else [len(row) for row in rows]


def as_training_data(rows: Sequence[Encoded]) -> Any:
    """The rows as what trainers take; those in a file are mapped and read as training asks."""
    from datasets import Dataset

    if isinstance(rows, TokenRows):
        return Dataset.from_file(str(rows.path))
    return Dataset.from_list([row.as_row() for row in rows])
