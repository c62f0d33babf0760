"""Keeps large sets of rows on disk: memory-mapped Arrow files, cached between runs.

A cache entry is a folder ``data/NAME`` in the cache folder with one Arrow file and ``facts.json``.
It is written under another name, sealed with the size and CRC-32 of each file, and renamed. An
entry that does not match its seal is removed and built again. The folder ``data`` may be deleted
at any time, also during a run: readers keep their files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
import weakref
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast, overload

from medcot.data.arrow import RecordBatch, load_arrow
from medcot.errors import RunFailed
from medcot.paths import cache_folder

MAX_CACHE_GIB = 20.0
"""Size of the cache beyond which the least recently used entries are removed."""

ABANDONED_S = 86_400.0
"""Seconds without a write after which an unfinished entry counts as left by a killed process."""

BATCH_ROWS = 256
"""Rows written, and decoded, at a time."""

BATCH_BYTES = 1 << 25
"""Bytes beyond which a batch is written early: Arrow counts a batch's characters in 31 bits."""

FACTS, SEAL = "facts.json", "seal.json"

_UNFINISHED = ".making-"
_BLOCK = 1 << 20

Facts = dict[str, Any]
"""JSON values that describe an entry's rows."""

Item = TypeVar("Item")


class ScratchFolder:
    """A temporary folder, removed with this object unless it becomes a cache entry.

    It is created in the cache folder, or in the system's temporary folder where the cache cannot
    be written.
    """

    def __init__(self) -> None:
        try:
            entries_folder().mkdir(parents=True, exist_ok=True)
            created = tempfile.mkdtemp(dir=entries_folder(), prefix=_UNFINISHED)
        except OSError:
            created = tempfile.mkdtemp(prefix="medcot-")
        self.path = Path(created)
        self._remove = weakref.finalize(self, shutil.rmtree, created, ignore_errors=True)

    def become_entry(self, name: str) -> bool:
        """Seal the folder and rename it; return whether it is the entry ``name`` now.

        It is not if another process was first or the cache folder cannot be written.
        """
        try:
            paths = sorted(self.path.iterdir())
            seal = dict(zip((path.name for path in paths), _checksums(paths), strict=True))
            (self.path / SEAL).write_text(json.dumps(seal), encoding="utf-8")
            self.path.rename(entries_folder() / name)
        except OSError:
            return False
        self._remove.detach()
        self.path = entries_folder() / name
        with suppress(OSError):
            _evict(self.path)
        return True


class ArrowRows(Sequence[Item], Generic[Item]):
    """A read-only sequence in an Arrow stream file, mapped as ``datasets`` maps it.

    A batch is decoded at a time and the pages it was read from are released, so reading the whole
    file does not count as this process's memory. Threads and forked processes may share it.
    Subclasses define how a row is stored.
    """

    FILE: ClassVar[str] = "rows.arrow"

    def __init__(self, folder: Path, scratch: ScratchFolder | None = None) -> None:
        """Open the file in ``folder``, which lives as long as ``scratch`` if one is given."""
        pa = load_arrow()
        self.path = folder / self.FILE
        self.scratch = scratch
        with self.path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._batches: list[RecordBatch] = list(pa.ipc.open_stream(pa.py_buffer(self._mapped)))
        self._firsts = array("Q", accumulate((b.num_rows for b in self._batches), initial=0))
        self._decoded: tuple[int, list[Item]] = (-1, [])

    @classmethod
    def schema(cls) -> Any:
        """Return the Arrow schema."""
        raise NotImplementedError

    @classmethod
    def size_of(cls, row: Item) -> int:
        """Return an upper bound of a row's size in bytes."""
        raise NotImplementedError

    @classmethod
    def encode(cls, rows: list[Item]) -> RecordBatch:
        """Return the rows as an Arrow batch."""
        raise NotImplementedError

    def decode(self, batch: RecordBatch, first: int) -> list[Item]:
        """Return copies of a batch's rows; ``first`` is the index of the first of them."""
        raise NotImplementedError

    @classmethod
    def write(cls, rows: Iterable[Item]) -> Self:
        """Write ``rows`` to a scratch folder and open the file.

        Raises:
            RunFailed: the disk is full or cannot be written.
        """
        pa = load_arrow()
        scratch = ScratchFolder()
        path = scratch.path / cls.FILE
        with _disk_failures_named(path):
            sink = pa.OSFile(str(path), "wb")
            writer = pa.ipc.new_stream(sink, cls.schema())
        for batch in cls._in_batches(rows):
            with _disk_failures_named(path):
                writer.write_batch(cls.encode(batch))
        with _disk_failures_named(path):
            writer.close()
            sink.close()
        return cls(scratch.path, scratch)

    @classmethod
    def load(cls, name: str, needs: Iterable[str]) -> tuple[Self, Facts] | None:
        """Open the cache entry ``name``; its facts hold at least what ``needs`` names.

        Return None where there is no such entry. One that is damaged or lacks a fact is removed.
        """
        folder = find_entry(name)
        if folder is None:
            return None
        with suppress(OSError, ValueError):
            facts = json.loads((folder / FACTS).read_bytes())
            if isinstance(facts, dict) and set(needs) <= set(cast("Facts", facts)):
                scratch = ScratchFolder()
                return cls(_link(folder / cls.FILE, scratch), scratch), cast("Facts", facts)
        remove_entry(folder)
        return None

    def save(self, name: str, facts: Facts) -> bool:
        """Make the written rows and ``facts`` a cache entry; return whether it is there now."""
        made = self.scratch
        assert made is not None, "only written rows can be saved"
        with suppress(OSError):
            (made.path / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            if made.become_entry(name):
                self.scratch = ScratchFolder()
                self.path = _link(made.path / self.FILE, self.scratch) / self.FILE
                return True
        return False

    def __len__(self) -> int:
        return self._firsts[-1]

    def __iter__(self) -> Iterator[Item]:
        for number in range(len(self._batches)):
            yield from self._batch(number)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        number = bisect_right(self._firsts, at) - 1
        return self._batch(number)[at - self._firsts[number]]

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def _batch(self, number: int) -> list[Item]:
        known, rows = self._decoded
        if known != number:
            rows = self.decode(self._batches[number], self._firsts[number])
            self._decoded = number, rows
            if hasattr(mmap, "MADV_DONTNEED"):  # not on every platform
                self._mapped.madvise(mmap.MADV_DONTNEED)
        return rows

    @classmethod
    def _in_batches(cls, rows: Iterable[Item]) -> Iterator[list[Item]]:
        batch: list[Item] = []
        size = 0
        for row in rows:
            more = cls.size_of(row)
            if batch and (len(batch) == BATCH_ROWS or size + more > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(row)
            size += more
        if batch:
            yield batch


def entries_folder() -> Path:
    """Return the folder that holds the cache entries."""
    return cache_folder() / "data"


def find_entry(name: str) -> Path | None:
    """Return the folder of an intact entry; remove one that does not match its seal."""
    folder = entries_folder() / name
    try:
        if not folder.exists():
            return None
        seal = json.loads((folder / SEAL).read_bytes())
        if _matches(folder, seal):
            with suppress(OSError):
                os.utime(folder)
            return folder
    except (OSError, ValueError):
        pass  # no seal, or none that can be read: the entry is rebuilt
    remove_entry(folder)
    return None


def remove_entry(folder: Path) -> None:
    """Remove an entry at once: it is renamed first, so no reader finds half of it."""
    gone = folder.with_name(f"{_UNFINISHED}gone-{os.getpid()}-{time.monotonic_ns()}")
    with suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def hash_parts(*parts: str | bytes) -> str:
    """Hash the parts, each with its length, to a name for what they determine (SHA-256)."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:40]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def hash_code() -> str:
    """Hash the code that decides what entries hold: with other code, entries have other names."""
    package = Path(str(files("medcot")))
    sources = [package / "records.py", *sorted((package / "data").glob("*.py"))]
    return hash_parts(*(path.read_bytes() for path in sources))


@contextmanager
def _disk_failures_named(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        remedy = "Free some space there, or set MEDCOT_CACHE to another folder."
        raise RunFailed("data", f"cannot write {path} ({error}).", remedy) from error


def _link(path: Path, scratch: ScratchFolder) -> Path:
    """Hard-link a file into a scratch folder and return the folder the file is in.

    Training maps the file by its name and ``datasets`` may write next to it, also after the entry
    is gone. Without hard links, that folder is the entry.
    """
    try:
        os.link(path, scratch.path / path.name)
    except OSError:
        return path.parent
    return scratch.path


def _matches(folder: Path, seal: Any) -> bool:
    if not isinstance(seal, Mapping):
        return False
    sums = cast("Mapping[str, list[int]]", seal)
    if {path.name for path in folder.iterdir()} != {*sums, SEAL}:
        return False
    return _checksums([folder / name for name in sums]) == list(sums.values())


def _checksums(paths: list[Path]) -> list[list[int]]:
    """Return [bytes, CRC-32] of each file, read in two threads."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(_checksum, paths))


def _checksum(path: Path) -> list[int]:
    size, check = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size += len(block)
            check = zlib.crc32(block, check)
    return [size, check]


def _evict(newest: Path) -> None:
    """Remove abandoned folders, and entries beyond ``MAX_CACHE_GIB`` except ``newest``."""
    entries: list[tuple[float, int, Path]] = []
    for folder in entries_folder().iterdir():
        with suppress(OSError):
            stats = [path.stat() for path in [folder, *folder.iterdir()]]
            used = max(one.st_mtime for one in stats)
            if not folder.name.startswith("."):
                entries.append((folder.stat().st_mtime, sum(one.st_size for one in stats), folder))
            elif time.time() - used > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
    total = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if total <= MAX_CACHE_GIB * 2**30:
            break
        if folder != newest:
            remove_entry(folder)
            total -= size
