"""Rows in a file instead of in memory: appended once, then read in any order, a batch at a time.

The file is an Arrow stream, which ``datasets`` can map too. It is read by offsets rather than
mapped, so that reading it from end to end does not count as memory.
"""

from __future__ import annotations

import os
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from medcot.errors import RunFailed

BATCH_ROWS = 256
"""Rows written, read and held at a time."""

BATCH_BYTES = 1 << 25
"""A batch ends before it holds more: Arrow counts a batch's characters in 31 bits."""

Item = TypeVar("Item")


class RowFile(Sequence[Item], Generic[Item]):
    """A sequence on disk. What its rows are, and how Arrow holds them, is a subclass's to say.

    Readers of other threads and forked processes share it: nothing has a position.
    """

    def __init__(self, path: Path, places: Mapping[str, Sequence[int]] | None = None) -> None:
        """Begin the file ``path``, or go on with what stands there at ``places``."""
        self.path = path
        self._starts = array("Q", places["starts"] if places else ())
        self._firsts = array("Q", places["firsts"] if places else ())
        self._count = places["count"][0] if places else 0
        self._pending: list[Item] = []
        self._bytes = 0
        self._last: tuple[int, list[Item]] = (-1, [])
        self._sink, self._writer = (None, None) if places else self._begin()
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def schema(cls) -> Any:
        """The Arrow schema."""
        raise NotImplementedError

    @classmethod
    def pack(cls, rows: list[Item]) -> Any:
        """The rows as an Arrow batch."""
        raise NotImplementedError

    @classmethod
    def unpack(cls, batch: Any) -> list[Item]:
        """The rows of an Arrow batch."""
        raise NotImplementedError

    @property
    def places(self) -> dict[str, list[int]]:
        """What is needed to open the finished file again."""
        return {
            "starts": self._starts.tolist(),
            "firsts": self._firsts.tolist(),
            "count": [self._count],
        }

    def append(self, row: Item, size: int = 0) -> None:
        """Add a row of about ``size`` bytes."""
        if self._pending and self._bytes + size > BATCH_BYTES:
            self._flush()
        self._pending.append(row)
        self._count += 1
        self._bytes += size
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def finish(self) -> None:
        """Write what is left; nothing can be added after it."""
        if self._writer is not None and self._sink is not None:
            self._flush()
            with _room_for(self.path):
                self._writer.close()
                self._sink.close()
            self._writer = self._sink = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        for number in range(len(self._firsts)):
            yield from self._batch(number)
        yield from self._pending

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._count))]
        at = index + self._count if index < 0 else index
        if not 0 <= at < self._count:
            raise IndexError(index)
        written = self._count - len(self._pending)
        if at >= written:
            return self._pending[at - written]
        number = bisect_right(self._firsts, at) - 1
        return self._batch(number)[at - self._firsts[number]]

    def __deepcopy__(self, memo: Any) -> RowFile[Item]:
        return self

    def _begin(self) -> tuple[Any, Any]:
        import pyarrow as pa

        with _room_for(self.path):
            sink = pa.OSFile(str(self.path), "wb")
            return sink, pa.ipc.new_stream(sink, self.schema())

    def _flush(self) -> None:
        if not self._pending:
            return
        assert self._sink is not None
        assert self._writer is not None
        self._firsts.append(self._count - len(self._pending))
        self._starts.append(self._sink.tell())
        with _room_for(self.path):
            self._writer.write_batch(self.pack(self._pending))
        self._pending, self._bytes = [], 0

    def _batch(self, number: int) -> list[Item]:
        known, rows = self._last
        if known == number:
            return rows
        import pyarrow as pa

        start = self._starts[number]
        last = number + 1 == len(self._starts)
        end = os.fstat(self._descriptor).st_size if last else self._starts[number + 1]
        raw = pa.BufferReader(_read_whole(self._descriptor, end - start, start))
        message = pa.ipc.read_message(raw)
        if message.type == "schema":  # the stream's own beginning
            message = pa.ipc.read_message(raw)
        rows = self.unpack(pa.ipc.read_record_batch(message, self.schema()))
        self._last = number, rows
        return rows


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Within, a disk that is full says what to do about it."""
    try:
        yield
    except OSError as error:
        remedy = "Free some space there, or set MEDCOT_CACHE to another folder."
        raise RunFailed("data", f"cannot write {path} ({error}).", remedy) from error


def _read_whole(descriptor: int, size: int, offset: int) -> bytes:
    """Linux reads at most 2 GiB at once."""
    parts: list[bytes] = []
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise RunFailed("data", "a file of rows ends too early.", "Try again.")
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)
