"""What was costly to make of a data set, kept on disk under a key: whole, or not there at all.

An entry is a folder ``data/NAME`` in the cache folder. It is written under another name, sealed
with the size and CRC-32 of each of its files, and renamed; an entry that does not match its seal
is removed and made again. Anybody may remove ``data`` at any time: readers hold their files open.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from medcot.paths import cache_folder

MOST_GIB = 20.0
"""Kept at most; beyond it the entries that were not used for longest go."""

ABANDONED_S = 86_400.0
"""After so long without a write, a half-made entry belongs to a process that was killed."""

SEAL = "seal.json"

_MAKING = ".making-"
_BLOCK = 1 << 20


class Scratch:
    """A new folder for an entry in the making; it goes with this object unless it was kept.

    It is in the cache folder, or in the folder for temporary files where that cannot be written.
    """

    def __init__(self) -> None:
        try:
            data_cache().mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(dir=data_cache(), prefix=_MAKING)
        except OSError:
            made = tempfile.mkdtemp(prefix="medcot-")
        self.path = Path(made)
        self._remove = weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)

    def keep(self, name: str, more: Mapping[str, bytes]) -> bool:
        """Add the files ``more`` and make this the entry ``name``; whether it is.

        It is not where another process was quicker, or where the cache folder cannot be written.
        Open files of the folder stay readable either way.
        """
        try:
            for file, content in more.items():
                (self.path / file).write_bytes(content)
            paths = sorted(self.path.iterdir())
            seal = {path.name: mark for path, mark in zip(paths, _marks(paths), strict=True)}
            (self.path / SEAL).write_text(json.dumps(seal), encoding="utf-8")
            self.path.rename(data_cache() / name)
        except OSError:
            return False
        self.path = data_cache() / name
        self._remove.detach()
        with suppress(OSError):
            _make_room(self.path)
        return True

    def hold(self, path: Path) -> Path:
        """A second name, here, for a file: it stays when the entry that it is of goes.

        Where the disk has no second names, the first one is all there is.
        """
        with suppress(OSError):
            os.link(path, self.path / path.name)
            return self.path / path.name
        return path


def data_cache() -> Path:
    """The folder that holds the entries."""
    return cache_folder() / "data"


def find_entry(name: str) -> Path | None:
    """The folder of a whole entry; one that does not match its seal is removed."""
    folder = data_cache() / name
    try:
        if not folder.exists():
            return None
        seal = json.loads((folder / SEAL).read_bytes())
        there = {path.name for path in folder.iterdir()} == {*seal, SEAL}
        if there and _marks([folder / file for file in seal]) == list(seal.values()):
            with suppress(OSError):
                os.utime(folder)
            return folder
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    remove_entry(folder)
    return None


def remove_entry(folder: Path) -> None:
    """Take an entry away at once; who reads it goes on reading."""
    gone = folder.with_name(f"{_MAKING}gone-{os.getpid()}-{time.monotonic_ns()}")
    with suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def key_of(*parts: str | bytes) -> str:
    """A name for what the parts determine: SHA-256 over them, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:40]


def source_of(*modules: str) -> str:
    """SHA-256 of the source of medcot's modules: an entry of other code is another entry."""
    digest = hashlib.sha256()
    for name in modules:
        digest.update(files("medcot").joinpath(f"{name}.py").read_bytes())
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _marks(paths: list[Path]) -> list[list[int]]:
    """[bytes, CRC-32] of each file; both cores read, as neither lets the other wait."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(_mark, paths))


def _mark(path: Path) -> list[int]:
    size, check = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size += len(block)
            check = zlib.crc32(block, check)
    return [size, check]


def _make_room(newest: Path) -> None:
    """Remove what killed processes left, and the entries beyond ``MOST_GIB`` but ``newest``."""
    entries: list[tuple[float, int, Path]] = []
    for folder in data_cache().iterdir():
        with suppress(OSError):
            stats = [path.stat() for path in [folder, *folder.iterdir()]]
            used = max(one.st_mtime for one in stats)
            if not folder.name.startswith("."):
                entries.append((folder.stat().st_mtime, sum(one.st_size for one in stats), folder))
            elif time.time() - used > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
    total = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if total <= MOST_GIB * 2**30:
            break
        if folder != newest:
            remove_entry(folder)
            total -= size
