"""Resolves a data set's name to samples, a file or the hub, and reads rows of files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from medcot.catalog import Message
from medcot.config.schema import BUNDLED_DATA, SHORT_DATA
from medcot.data.file_signatures import find_wrong_file
from medcot.data.readers import READERS, SourceRow
from medcot.data.text import printable
from medcot.errors import InputError, nearest
from medcot.records import Language

SAMPLES = {BUNDLED_DATA: "cases", SHORT_DATA: "short"}
"""Names of the bundled cases, and the stems of their files."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OTHER_FILES = (".txt", ".tsv", ".xlsx", ".xls", ".gz", ".zip", ".zst", ".arrow", ".ndjson")


def kind_of(name: str) -> Literal["sample", "file", "hub"]:
    """Return what a data set's name means. An existing file takes precedence over a hub name.

    Raises:
        InputError: neither a name of bundled cases nor a file nor of the form ``owner/name``.
    """
    if name in SAMPLES:
        return "sample"
    suffix = Path(name).suffix.lower()
    if suffix in READERS or suffix in _OTHER_FILES or _exists(name):
        return "file"
    if _HUB_NAME.fullmatch(name):
        return "hub"
    kinds = "a .jsonl/.json/.csv/.parquet file, a hub name (owner/name)"
    needs = f"expected {kinds}, sample or sample-short"
    got = "neither a file nor a hub name"
    raise InputError(name, got, needs + nearest(name, list(SAMPLES)))


def sample_files(stem: str, language: Language | None = None) -> list[Path]:
    """Return the bundled files named ``STEM``, or ``STEM_LANGUAGE``.

    Raises:
        InputError: there are none: the install is damaged.
    """
    pattern = f"{stem}_{language}*.jsonl" if language else f"{stem}.jsonl"
    folder = Path(str(files("medcot.data"))) / "samples"
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError("sample", f"no {pattern} in {folder}", "reinstall medcot")
    return found


def read_files(paths: Iterable[Path]) -> Iterator[SourceRow]:
    """Yield the rows of several files as one source, numbered across files."""
    number = 0
    for path in paths:
        for row in read_file(path):
            number += 1
            yield row if row.number == number else replace(row, number=number)


def read_file(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of one file, in its order, without reading ahead.

    Raises:
        InputError: no such file, a folder, unreadable, of an unknown kind, without rows, or broken
            so that the rest of it cannot be read.
    """
    _require_file(path)
    count = 0
    try:
        for row in READERS[path.suffix.lower()](path):
            count += 1
            yield row
    except OSError as error:
        needs = "expected a readable file"
        raise InputError(str(path), error.strerror or str(error), needs) from None
    if not count:
        raise InputError(str(path), "no rows found", "expected at least one row")


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def _require_file(path: Path) -> None:
    kinds = ", ".join(READERS)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        needs = Message("needs_existing_file", {"kinds": kinds})
        raise InputError(str(path), Message("error_no_file"), needs) from None
    except OSError as error:
        needs = "expected a readable file"
        raise InputError(str(path), error.strerror or str(error), needs) from None
    except ValueError:
        needs = Message("needs_existing_file", {"kinds": kinds})
        raise InputError(printable(str(path)), "not a valid file name", needs) from None
    if not path.is_file():
        got = "found a folder" if path.is_dir() else "not a regular file"
        raise InputError(str(path), got, f"expected one {kinds} file")
    if path.suffix.lower() not in READERS:
        got = f"found the extension {path.suffix or '(none)'!r}"
        raise InputError(str(path), got, f"expected one of {kinds}")
    if not size:
        raise InputError(str(path), "the file is empty", "expected at least one row")
    try:
        wrong = find_wrong_file(path)
    except OSError as error:
        needs = "expected a readable file"
        raise InputError(str(path), error.strerror or str(error), needs) from None
    if wrong:
        raise InputError(str(path), *wrong)
