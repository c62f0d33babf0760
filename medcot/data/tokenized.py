"""Holds the tokenised data set: rows on disk that training maps, or rows in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from medcot.data.arrow import RecordBatch, load_arrow, load_datasets
from medcot.data.store import ArrowRows, Facts, ScratchFolder
from medcot.data.tokenization import IGNORED, TokenizedRow


class StoredRows(ArrowRows[TokenizedRow]):
    """Rows as ``input_ids`` and ``labels``, which trainers take as they are.

    ``ids`` and ``lengths`` (in tokens) of all rows are in memory.
    """

    FILE = "tokens.arrow"

    def __init__(self, folder: Path, scratch: ScratchFolder | None = None) -> None:
        super().__init__(folder, scratch)
        self.ids: list[str] = []
        self.lengths = array("i")

    @classmethod
    def schema(cls) -> Any:
        """Return the Arrow schema."""
        pa = load_arrow()
        return pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels")])

    @classmethod
    def size_of(cls, row: TokenizedRow) -> int:
        """Return an upper bound of the row's size in bytes."""
        return 8 * len(row)

    @classmethod
    def encode(cls, rows: list[TokenizedRow]) -> RecordBatch:
        """Return the rows as an Arrow batch."""
        pa = load_arrow()
        ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        ids, labels = array("i"), array("i")
        for row in rows:
            prompt, completion = row.arrays
            ids += prompt + completion
            labels += array("i", [IGNORED]) * len(prompt) + completion
        columns = [pa.ListArray.from_arrays(ends, np.asarray(one)) for one in (ids, labels)]
        return pa.RecordBatch.from_arrays(columns, schema=cls.schema())

    def decode(self, batch: RecordBatch, first: int) -> list[TokenizedRow]:
        """Return copies of a batch's rows."""
        column, labels = batch.column("input_ids"), batch.column("labels")
        ids, labelled = column.values.to_numpy(), labels.values.to_numpy() != IGNORED
        rows: list[TokenizedRow] = []
        for at, (start, end) in enumerate(pairwise(column.offsets.to_pylist()), first):
            border = start + int(labelled[start:end].argmax())
            halves = ids[start:border].tobytes(), ids[border:end].tobytes()
            rows.append(TokenizedRow.of_bytes(self.ids[at], *halves))
        return rows

    @classmethod
    def write(cls, rows: Iterable[TokenizedRow]) -> Self:
        """Write ``rows`` to a scratch folder, and note their ids and lengths."""
        ids: list[str] = []
        lengths = array("i")

        def noted() -> Iterator[TokenizedRow]:
            for row in rows:
                ids.append(row.id)
                lengths.append(len(row))
                yield row

        written = super().write(noted())
        written.ids, written.lengths = ids, lengths
        return written

    @classmethod
    def load(cls, name: str, needs: Iterable[str]) -> tuple[Self, Facts] | None:
        """Open a cache entry, or return None where there is none."""
        if (found := super().load(name, (*needs, "ids", "lengths"))) is None:
            return None
        rows, facts = found
        rows.ids, rows.lengths = facts.pop("ids"), array("i", facts.pop("lengths"))
        return rows, facts

    def save(self, name: str, facts: Facts) -> bool:
        """Make the rows and ``facts`` a cache entry; return whether it is there now."""
        return super().save(name, {"ids": self.ids, "lengths": self.lengths.tolist()} | facts)


def list_row_ids(rows: Sequence[TokenizedRow]) -> Sequence[str]:
    """Return the rows' ids, without reading the tokens of rows on disk."""
    return rows.ids if isinstance(rows, StoredRows) else [row.id for row in rows]


def list_row_lengths(rows: Sequence[TokenizedRow]) -> Sequence[int]:
    """Return the rows' lengths in tokens, without reading those on disk."""
    return rows.lengths if isinstance(rows, StoredRows) else [len(row) for row in rows]


def to_training_dataset(rows: Sequence[TokenizedRow]) -> Any:
    """Return the rows as the ``datasets.Dataset`` that trainers take; files are mapped."""
    dataset = load_datasets().Dataset
    if isinstance(rows, StoredRows):
        return dataset.from_file(str(rows.path))
    return dataset.from_list([row.as_row() for row in rows])
