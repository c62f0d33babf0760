"""Says how many rows of a Parquet file can be decoded at once, before anything is decoded.

A file may be a bomb: some kilobytes that unpack to gigabytes, because a page is compressed a
thousandfold, or because each of many rows refers to one long entry of a dictionary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from medcot.errors import InputError

MEMORY = 1 << 28
"""Bytes that the texts of the rows decoded at once may take."""

LARGEST_CHUNK = 1 << 28
"""Bytes that a column of a row group may unpack to where it is compressed by more than
``HIGHEST_RATIO``."""

LARGE_DICTIONARY = 1 << 20
"""Bytes of a dictionary from which on rows share its texts in place of copies."""

HIGHEST_RATIO = 200
"""Texts are compressed to a tenth, at best."""

_LONGEST_HEADER = 64
"""Bytes read of a page's header, whose first fields are its type and unpacked size."""


class ReadingPlan(NamedTuple):
    """How to read a file: rows decoded at a time, and columns whose texts are shared by rows."""

    rows: int
    shared: list[str]


def plan_reading(path: Path, metadata: Any, most: int) -> ReadingPlan:
    """Return how to read a file within ``MEMORY``, ``most`` rows or fewer at a time.

    Raises:
        InputError: a column or dictionary unpacks to more than fits into memory.
    """
    largest = 1
    shared: dict[str, None] = {}
    with path.open("rb") as file:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                size, name = _size_of_dictionary(path, file, column), column.path_in_schema
                if size > LARGE_DICTIONARY and "." not in name:
                    shared[name] = None
                else:
                    largest = max(largest, size)
    return ReadingPlan(max(1, min(most, MEMORY // largest)), list(shared))


def _size_of_dictionary(path: Path, file: BinaryIO, column: Any) -> int:
    """Return the bytes of a column chunk's dictionary, 0 where it has none."""
    packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
    if unpacked > LARGEST_CHUNK and unpacked > HIGHEST_RATIO * max(packed, 1):
        _refuse(path, column, f"{packed:,} bytes that unpack to {unpacked:,}")
    if not column.has_dictionary_page:
        return 0
    file.seek(max(0, column.dictionary_page_offset))
    size = _unpacked_size(file.read(_LONGEST_HEADER))
    size = unpacked if size is None else size
    if size > MEMORY:
        _refuse(path, column, f"a dictionary of {size:,} bytes")
    return size


def _unpacked_size(header: bytes) -> int | None:
    """Return the second field of a page header in Thrift's compact protocol, None if it is none.

    Both fields are 32-bit integers: a byte 0x15 (field number one higher, type i32), then a
    variable-length number whose lowest bit is the sign.
    """
    at, value = 0, 0
    for _ in range(2):
        if at >= len(header) or header[at] != 0x15:
            return None
        value, shift, at = 0, 0, at + 1
        while at < len(header):
            byte, at = header[at], at + 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
    return None if value & 1 else value >> 1


def _refuse(path: Path, column: Any, got: str) -> None:
    where = f"{path}, column {column.path_in_schema}"
    needs = f"expected at most {MEMORY >> 20} MiB; write the rows as .jsonl"
    raise InputError(where, f"found {got}", needs)
