"""Reads JSON Lines, JSON, CSV, Parquet and Arrow files row by row, also compressed ones.

A row that cannot be read becomes a :class:`Fault`, and reading continues. Where the rest of the
file cannot be read, an :class:`~medcot.errors.InputError` ends it.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from medcot.data.arrow import load_arrow, load_parquet
from medcot.data.arrow_files import read_batches
from medcot.data.parquet_limits import plan_reading
from medcot.data.streams import find_encoding, format_of, open_bytes
from medcot.errors import InputError, one_line
from medcot.records import Problem, Turn

LONGEST_CELL = 16_000_000
"""Characters in one CSV cell, and bytes of a line. The csv module's own limit of 131,072 is shorter
than some rows."""

MOST_COLUMNS = 10_000
"""Columns of a CSV file."""

LARGEST_JSON = 1 << 28
"""Bytes of a ``.json`` list, which is parsed as a whole and takes several times that in memory."""

MOST_OBJECTS = 2_000_000
"""Objects in a ``.json`` list, nested ones included; an empty one takes 64 bytes."""

BATCH = 512
"""Parquet and Arrow rows decoded at a time."""

DELIMITERS = ",;\t|"
"""What separates the cells of a table, likeliest first."""

ENCODINGS = {
    "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "cp1252": "Windows-1252",
    "mac_roman": "Mac OS Roman", "gb18030": "GB18030",
}  # fmt: skip
"""Encodings of tables that are told, by their names in Python."""

HEAD_LINES = 40
"""Lines after the first by which the separator of a table is told."""

BUFFER = 1 << 20
"""Bytes of a Parquet column read at a time."""

Values = Mapping[str, Any]

_ONLY_CR = {
    ".csv": re.compile(rb'\A[^\n"]*\r[^\n]'),
    ".jsonl": re.compile(rb"\r[^\n]"),
}
"""A carriage return within what line feeds make the first line, outside quotes."""

_DELIMITER = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)


class Fault(NamedTuple):
    """One defect of one field of one row: where it is, what was found, what is needed."""

    where: str
    field: str
    got: str
    needs: str

    @property
    def problem(self) -> Problem:
        """Return the fault as ``medcot data`` reports it."""
        return Problem(self.where, self.field, f"found {self.got}; expected {self.needs}")

    def as_error(self, more: str = "") -> InputError:
        """Return the error that reports this fault; ``more`` is appended to its line."""
        place = f"{self.where}, {self.field}"
        return InputError(place, f"found {self.got}", f"expected {self.needs}{more}")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as found in its source. ``number`` counts from 1, ``where`` names file and line.

    ``header`` is the place that names the columns, for formats that name them once. ``shown`` maps
    names in ``values`` to those in the file, where they are others. ``turns`` come before the
    question. Without ``thinks`` the row has no thought, and needs none.
    """

    number: int
    where: str
    values: Values = field(default_factory=dict[str, Any])
    fault: Fault | None = None
    header: str = ""
    shown: Mapping[str, str] = field(default_factory=dict[str, str])
    turns: tuple[Turn, ...] = ()
    thinks: bool = True


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
    with open_bytes(path) as file:
        raw = file.read(LARGEST_JSON + 1)
    if len(raw) > LARGEST_JSON:
        got = f"found a JSON list of over {LARGEST_JSON >> 20} MiB"
        raise InputError(str(path), got, "use .jsonl, one object per line")
    needs = "expected one JSON list of objects"
    if raw.count(b"{") > MOST_OBJECTS or raw.count(b",") > 10 * MOST_OBJECTS:
        got = "found millions of values, which take gigabytes as a whole"
        raise InputError(str(path), got, "use .jsonl, one object per line")
    try:
        values = _parse_json(_decode(raw, path))
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
    with closing(_table_lines(path)) as lines:
        yield from _read_cells(path, lines)


def find_separator(path: Path) -> str:
    """Return what separates the cells of a table in a file.

    Raises:
        InputError: two would fit, or the file cannot be read.
    """
    with closing(_table_lines(path)) as lines:
        return _open_table(path, lines)[0]


def describe_table(path: Path) -> Iterator[str]:
    """Tell a table's encoding and separator, where they are not the usual ones of its format.

    Raises:
        InputError: as :func:`find_separator`.
    """
    if (code := find_encoding(path)) in ENCODINGS:
        yield f"{path}: decoded from {ENCODINGS[code]}"
    separator = find_separator(path)
    if separator != {".csv": ",", ".tsv": "\t"}[format_of(path)]:
        yield f"{path}: separated by {separator!r}"


def _open_table(path: Path, lines: Iterator[str]) -> tuple[str, int, Iterator[str]]:
    """Return a table's separator, how many lines stand above its header, and the other lines."""
    first = next(lines, "")
    # Excel writes its delimiter on a line of its own, before the header.
    if declared := _DELIMITER.fullmatch(first):
        return declared[1], 1, lines
    if format_of(path) == ".tsv":
        return "\t", 0, chain([first], lines)
    head = [first, *_take_lines(lines)]
    return _find_delimiter(path, head), 0, chain(head, lines)


def _read_cells(path: Path, lines: Iterator[str]) -> Iterator[SourceRow]:
    delimiter, above, lines = _open_table(path, lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    top = f"{path}, line {1 + above}"
    try:
        nothing: list[str] = []
        header = next(reader, nothing)
        names = [name.strip() for name in header]
        if len(names) > MOST_COLUMNS:
            needs = f"expected at most {MOST_COLUMNS:,}"
            raise InputError(top, f"found {len(names):,} columns", needs)
        _refuse_repeated(names, top)
        count, start = 0, above + reader.line_num + 1
        for cells in reader:
            where, start = f"{path}, line {start}", above + reader.line_num + 1
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
        raise InputError(f"{path}, line {above + reader.line_num}", str(error), needs) from None


def _take_lines(lines: Iterator[str]) -> Iterator[str]:
    """Yield the next lines, as far as the separator is told by them."""
    size = 0
    for line in islice(lines, HEAD_LINES):
        yield line
        size += len(line)
        if size > BUFFER:
            return


def _find_delimiter(path: Path, head: Sequence[str]) -> str:
    """Return what separates the cells: the one of the usual that fits the first lines.

    Raises:
        InputError: two fit.
    """
    outside = re.sub(r'"[^"]*"', "", head[0])
    there = [one for one in DELIMITERS if one in outside]
    if len(there) < 2:
        return there[0] if there else ","
    fitting = {one: header for one in there if (header := _header_by(one, head))}
    if len(fitting) > 1:
        (one, columns), (other, others) = list(fitting.items())[:2]
        shown = [one_line(" / ".join(names), 60) for names in (columns, others)]
        got = f"found two separators that fit: {one!r} ({shown[0]}) and {other!r} ({shown[1]})"
        raise InputError(f"{path}, line 1", got, f"put the line sep={one} above the header")
    return next(iter(fitting), there[0])


def _header_by(delimiter: str, head: Sequence[str]) -> list[str]:
    """Return the header as one delimiter divides it; [] if lines have other numbers of cells."""
    try:
        rows = [cells for cells in csv.reader(head, delimiter=delimiter) if cells]
    except csv.Error:
        return []
    whole = rows[:-1] if len(rows) > 2 else rows  # The last one may continue.
    return whole[0] if whole and len({len(cells) for cells in whole}) == 1 else []


def _read_arrow(path: Path) -> Iterator[SourceRow]:
    number = 0
    for batch in read_batches(path, BATCH):
        _refuse_repeated(batch.schema.names, f"{path}, schema")
        for values in python_rows(batch):
            number += 1
            yield SourceRow(number, f"{path}, row {number}", values, header=f"{path}, schema")


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    pa, pq = load_arrow(), load_parquet()

    number = 0
    try:
        # Otherwise whole row groups are read at once, and writers often put all rows into one.
        plan = plan_reading(path, pq.read_metadata(path), BATCH)
        with pq.ParquetFile(
            path, buffer_size=BUFFER, pre_buffer=False, read_dictionary=plan.shared
        ) as file:
            _refuse_repeated(file.schema_arrow.names, f"{path}, schema")
            for batch in file.iter_batches(batch_size=plan.rows):
                for values in python_rows(batch):
                    number += 1
                    yield SourceRow(
                        number, f"{path}, row {number}", values, header=f"{path}, schema"
                    )
    except UnicodeDecodeError:
        got = "found a column name that is not UTF-8"
        raise InputError(f"{path}, schema", got, "name columns in UTF-8") from None
    except pa.ArrowException as error:
        where = f"{path}, row {number + 1}"
        raise InputError(where, str(error), "expected a complete Parquet file") from None


READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
"""The reader of each format, by the suffix that :func:`~medcot.data.streams.format_of` returns."""


class Unreadable(NamedTuple):
    """A cell that Python cannot represent, and why: a fault of its row if the column is used."""

    reason: str

    def __repr__(self) -> str:
        return f"({self.reason})"


def python_rows(batch: Any) -> list[dict[str, Any]]:
    """Convert an Arrow batch to dicts.

    Arrow does not check that its strings are UTF-8: bytes that are not become lone surrogates, so
    that they are reported with their field. Cells of a type without a counterpart in Python, such
    as times in an unknown time zone, become :class:`Unreadable`.
    """
    names = batch.schema.names
    columns = [_python_cells(column) for column in batch.columns]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


_TYPE_NAMES: dict[type, str] = {
    dict: "object",
    list: "list",
    str: "text",
    bool: "true/false",
    type(None): "null",
}


def describe_type(value: Any) -> str:
    """Return the everyday word for a JSON value's type."""
    if isinstance(value, Unreadable):
        return "a value that cannot be read"
    kind = cast("object", value).__class__
    return _TYPE_NAMES.get(kind, "number" if isinstance(value, int | float) else "value")


def _python_cells(column: Any) -> list[Any]:
    pa = load_arrow()
    if pa.types.is_dictionary(column.type):
        # Rows that refer to one long entry share it; ``to_pylist`` would copy it for each.
        entries = _python_cells(column.dictionary)
        return [None if at is None else entries[at] for at in column.indices.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return _escaped(column)
    except Exception as error:  # noqa: BLE001 - which one depends on the type; the row reports it
        return [Unreadable(one_line(f"{type(error).__name__}: {error}", 80))] * len(column)


def _escaped(column: Any) -> list[Any]:
    pa = load_arrow()
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return [Unreadable("not UTF-8")] * len(column)
    cells = column.cast(pa.large_binary()).to_pylist()
    return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in cells]


def _refuse_repeated(names: Sequence[str], where: str) -> None:
    """Refuse a column that is named twice: which of the two is meant is a guess."""
    if repeated := _first_repeated(names):
        shown = one_line(repr(repeated), 60)
        raise InputError(where, f"found the column {shown} twice", "name each column once")


def _first_repeated(names: Sequence[str]) -> str | None:
    counts = Counter(names)
    return next((name for name in names if counts[name] > 1), None)


def _decoded_lines(path: Path) -> Generator[str]:
    """Yield lines, split at line feeds only: U+2028 may occur inside a JSON text."""
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_CELL + 1), b""), 1):
            if len(line) > LONGEST_CELL:
                raise _longer_line(path, number)
            yield _decode(line, path) if number == 1 else line.decode("utf-8", "surrogateescape")


def _table_lines(path: Path) -> Generator[str]:
    """Yield the lines of a table in the encoding that it has."""
    encoding = find_encoding(path)
    if encoding == "utf-8":
        yield from _decoded_lines(path)
        return
    # What cannot be decoded becomes U+FFFD, which is reported with its row.
    with TextIOWrapper(open_bytes(path), encoding, "replace", newline="\n") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_CELL + 1), ""), 1):
            if len(line) > LONGEST_CELL:
                raise _longer_line(path, number)
            yield line


def _longer_line(path: Path, number: int) -> InputError:
    needs = f"expected at most {LONGEST_CELL:,}; one row a line"
    return InputError(f"{path}, line {number}", "found a longer line", needs)


def _decode(raw: bytes, path: Path) -> str:
    """Decode the beginning of a file. Bytes that are not UTF-8 become lone surrogates."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}, line 1", "found UTF-16 text", "save it as UTF-8")
    ends = _ONLY_CR.get(format_of(path))
    if ends and ends.search(raw):
        got = "found lines that end in a carriage return alone"
        raise InputError(f"{path}, line 1", got, "save it with line feeds")
    return raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _object_row(number: int, where: str, value: Any) -> SourceRow:
    if isinstance(value, dict):
        return SourceRow(number, where, cast("dict[str, Any]", value))
    fault = Fault(where, "row", f"JSON {describe_type(value)}", "a JSON object")
    return SourceRow(number, where, fault=fault)


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = _first_repeated([name for name, _ in pairs])
        begins = one_line(f"{pairs[0][0]!r}: {pairs[0][1]!r}", 60)
        raise ValueError(f"the key {repeated!r} twice in the object that begins {begins}")
    return values


def _describe(error: Exception) -> str:
    """Return the message of a JSON parser's exception, with its column if it names one."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
