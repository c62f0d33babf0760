"""Reads JSON Lines, JSON, CSV and Parquet files row by row.

A row that cannot be read becomes a :class:`Fault`, and reading continues. Where the rest of the
file cannot be read, an :class:`~medcot.errors.InputError` ends it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from medcot.errors import InputError, one_line
from medcot.records import Problem

LONGEST_CELL = 16_000_000
"""Characters in one CSV cell; the csv module's own limit of 131,072 is shorter than some rows."""

LARGEST_JSON = 1 << 28
"""Bytes of a ``.json`` list, which is parsed as a whole and takes several times that in memory."""

BATCH = 512
"""Parquet rows decoded at a time."""

BUFFER = 1 << 20
"""Bytes of a Parquet column read at a time."""

Values = Mapping[str, Any]


class Fault(NamedTuple):
    """One defect of one field of one row: where it is, what was found, what is needed."""

    where: str
    field: str
    got: str
    needs: str

    @property
    def problem(self) -> Problem:
        """The fault as ``medcot data`` reports it."""
        return Problem(self.where, self.field, f"found {self.got}; expected {self.needs}")

    def as_error(self, more: str = "") -> InputError:
        """Return the error that reports this fault; ``more`` is appended to its line."""
        place = f"{self.where}, {self.field}"
        return InputError(place, f"found {self.got}", f"expected {self.needs}{more}")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as found in its source. ``number`` counts from 1, ``where`` names file and line.

    ``header`` is the place that names the columns, for formats that name them once.
    """

    number: int
    where: str
    values: Values = field(default_factory=dict[str, Any])
    fault: Fault | None = None
    header: str = ""


def _read_jsonl(path: Path) -> Iterator[SourceRow]:
    count = 0
    for number, line in enumerate(_decoded_lines(path), 1):
        if not line.strip():
            continue
        count += 1
        where = f"{path}, line {number}"
        try:
            value = _parse_json(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            got = f"broken JSON ({_describe(error)})"
            yield SourceRow(
                count, where, fault=Fault(where, "row", got, "one JSON object per line")
            )
        else:
            yield _object_row(count, where, value)


def _read_json(path: Path) -> Iterator[SourceRow]:
    if path.stat().st_size > LARGEST_JSON:
        got = f"found a JSON list of {path.stat().st_size / 2**20:,.0f} MiB"
        needs = f"lists over {LARGEST_JSON >> 20} MiB are not read; use .jsonl, one object per line"
        raise InputError(str(path), got, needs)
    needs = "expected one JSON list of objects"
    try:
        values = _parse_json(_decode(path.read_bytes(), path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            needs += " (JSON Lines belong in a .jsonl file)"
        where = f"{path}, line {error.lineno}"
        raise InputError(where, f"found broken JSON ({_describe(error)})", needs) from None
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"found broken JSON ({_describe(error)})", needs) from None
    if not isinstance(values, list):
        raise InputError(f"{path}, line 1", f"found JSON {describe_type(values)}", needs)
    for number, value in enumerate(cast("list[Any]", values), 1):
        yield _object_row(number, f"{path}, row {number}", value)


def _read_csv(path: Path) -> Iterator[SourceRow]:
    # The module has one limit for the whole process. It is only ever raised, so that a reader in
    # another thread is never held to a lower one than its own.
    csv.field_size_limit(max(LONGEST_CELL, csv.field_size_limit()))
    with closing(_decoded_lines(path)) as lines:
        yield from _read_cells(path, lines)


def _read_cells(path: Path, lines: Iterator[str]) -> Iterator[SourceRow]:
    reader = csv.reader(lines, strict=True)
    top = f"{path}, line 1"
    try:
        names = [name.strip() for name in next(reader, [])]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InputError(
                top, f"found the column {repeated[0]!r} twice", "name each column once"
            )
        count, start = 0, reader.line_num + 1
        for cells in reader:
            where, start = f"{path}, line {start}", reader.line_num + 1
            if not cells:
                continue
            count += 1
            if len(cells) == len(names):
                yield SourceRow(count, where, dict(zip(names, cells, strict=True)), header=top)
            else:
                needs = f"{len(names)}, as the header has"
                yield SourceRow(
                    count, where, fault=Fault(where, "row", f"{len(cells)} cells", needs)
                )
    except csv.Error as error:
        needs = "put cells with commas, quotes or line breaks in double quotes"
        raise InputError(f"{path}, line {reader.line_num}", str(error), needs) from None


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Otherwise whole row groups are read at once, and writers often put all rows into one.
        with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for values in python_rows(batch):
                    number += 1
                    yield SourceRow(
                        number, f"{path}, row {number}", values, header=f"{path}, schema"
                    )
    except pa.ArrowException as error:
        where = f"{path}, row {number + 1}"
        raise InputError(where, str(error), "expected a complete Parquet file") from None


READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def python_rows(batch: Any) -> list[dict[str, Any]]:
    """Convert an Arrow batch to dicts. Arrow does not check that its strings are UTF-8.

    Bytes that are not UTF-8 become lone surrogates, so that they are reported with their field.
    """
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        names = batch.schema.names
        columns = [_escaped(batch.column(name)) for name in names]
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def describe_type(value: Any) -> str:
    """Return the everyday word for a JSON value's type."""
    names = {dict: "object", list: "list", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "value")


def _escaped(column: Any) -> list[Any]:
    import pyarrow as pa

    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return column.to_pylist()
    cells = column.cast(pa.large_binary()).to_pylist()
    return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in cells]


def _decoded_lines(path: Path) -> Generator[str]:
    """Yield lines, split at line feeds only: U+2028 may occur inside a JSON text."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield _decode(line, path) if number == 1 else line.decode("utf-8", "surrogateescape")


def _decode(raw: bytes, path: Path) -> str:
    """Decode the beginning of a file. Bytes that are not UTF-8 become lone surrogates."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}, line 1", "found UTF-16 text", "save it as UTF-8")
    return raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _object_row(number: int, where: str, value: Any) -> SourceRow:
    if isinstance(value, dict):
        return SourceRow(number, where, value)
    fault = Fault(where, "row", f"JSON {describe_type(value)}", "a JSON object")
    return SourceRow(number, where, fault=fault)


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        begins = one_line(f"{names[0]!r}: {pairs[0][1]!r}", 60)
        raise ValueError(f"the key {repeated!r} twice in the object that begins {begins}")
    return values


def _describe(error: Exception) -> str:
    """Return the message of a JSON parser's exception, with its column if it names one."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
