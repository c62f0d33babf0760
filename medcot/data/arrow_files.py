"""Reads Arrow files, as ``datasets`` saves them, without trusting what they say.

The files are mapped, so that a batch takes no memory until its rows are decoded. Compressed
buffers are refused before they unpack, and types whose values may be many times as large as the
file (views, runs, lists of nothing) are left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medcot.data.arrow import load_arrow
from medcot.data.parquet_limits import MEMORY
from medcot.errors import InputError, one_line

MOST_ROWS_PER_BYTE = 8
"""Rows of a batch for each byte of it: a column of truth values takes one bit a row."""

_FILE_MAGIC = b"ARROW1\0\0"
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def read_batches(path: Path, rows: int) -> Iterator[Any]:
    """Yield record batches of at most ``rows`` rows, of the columns that can be decoded.

    Raises:
        InputError: damaged or compressed data, or rows that are too large.
    """
    pa = load_arrow()
    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            start = len(_FILE_MAGIC) if source.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
            source.seek(start)
            _check_messages(path, pa.ipc.MessageReader.open_stream(source))
            source.seek(start)
            for batch in pa.ipc.open_stream(source):
                batch.validate(full=False)
                kept = [n for n, one in enumerate(batch.schema.types) if _is_decodable(one)]
                batch = batch.select(kept)
                for first in range(0, batch.num_rows, rows):
                    part = batch.slice(first, rows)
                    if part.nbytes > MEMORY:
                        got = f"found {part.num_rows} rows of {part.nbytes:,} bytes"
                        needs = f"expected at most {MEMORY >> 20} MiB together"
                        raise InputError(f"{path}, row {number + 1}", got, needs)
                    for column in part.columns:
                        _require_whole(column)
                    yield part
                    number += part.num_rows
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        where = f"{path}, row {number + 1}"
        got = f"found damaged Arrow data ({one_line(str(error), 80)})"
        raise InputError(where, got, "save it again with save_to_disk") from None


def _check_messages(path: Path, messages: Any) -> None:
    """Refuse compressed batches, and batches of more rows than they have room for."""
    for number, message in enumerate(messages):
        try:
            rows, packed = _read_header(message.metadata.to_pybytes())
        except (struct.error, IndexError):
            got = "found a damaged Arrow message"
            raise InputError(f"{path}, batch {number}", got, "save it again") from None
        if packed:
            got = "found compressed Arrow data"
            raise InputError(str(path), got, "save it uncompressed, or as Parquet")
        size = message.body.size if message.body is not None else 0
        if rows > MOST_ROWS_PER_BYTE * size + 1000:
            got = f"found {rows:,} rows in {size:,} bytes"
            raise InputError(f"{path}, batch {number}", got, "save it again")


def _read_header(content: bytes) -> tuple[int, bool]:
    """Return a message's number of rows, and whether its buffers are compressed.

    The header is a flatbuffer (Message.fbs): a table's first number leads to its vtable, which
    holds the place of each field, 0 where it is absent.
    """
    message = struct.unpack_from("<I", content)[0]
    kind_at = _field(content, message, 1)
    kind = content[kind_at] if kind_at else 0
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return 0, False
    batch = _follow(content, _field(content, message, 2))
    if kind == _DICTIONARY_BATCH:
        batch = _follow(content, _field(content, batch, 1))
    length_at = _field(content, batch, 0)
    rows = struct.unpack_from("<q", content, length_at)[0] if length_at else 0
    return rows, bool(_field(content, batch, 3))


def _field(content: bytes, table: int, number: int) -> int:
    """Return where a field of a flatbuffer's table is, 0 if it is absent."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    if vtable < 0:
        raise IndexError(vtable)
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", content, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", content, vtable + at)[0]
    return table + offset if offset else 0


def _follow(content: bytes, at: int) -> int:
    if not at:
        raise IndexError(at)
    return at + struct.unpack_from("<I", content, at)[0]


def _is_decodable(kind: Any) -> bool:
    """Tell whether values of a type are about as large as their part of the file."""
    types = load_arrow().types
    if types.is_dictionary(kind):
        return types.is_string(kind.value_type) or types.is_large_string(kind.value_type)
    return types.is_null(kind) or _is_solid(kind)


def _is_solid(kind: Any) -> bool:
    """Tell whether each value, at any depth, takes room of its own."""
    types = load_arrow().types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_solid(kind.value_type)
    if types.is_map(kind):
        return _is_solid(kind.key_type) and _is_solid(kind.item_type)
    if types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_solid(one.type) for one in kind)
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return types.is_primitive(kind) or types.is_boolean(kind) or any(one(kind) for one in texts)


def _require_whole(column: Any) -> None:
    """Check that a column's offsets and indices lie within it; its text need not be UTF-8."""
    pa = load_arrow()
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        nested = pa.types.is_nested(column.type)
        if nested or not ("UTF8" in str(error) or "UTF-8" in str(error)):
            raise
