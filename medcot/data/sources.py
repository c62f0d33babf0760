"""Resolves a data set's name to samples, files or the hub, and reads rows of files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any, Literal

from medcot.catalog import Message
from medcot.config.schema import BETWEEN_DATA_SETS, BUNDLED_DATA, SHORT_DATA
from medcot.data.file_signatures import find_wrong_file
from medcot.data.readers import READERS, SourceRow
from medcot.data.snapshots import find_snapshot
from medcot.data.streams import COMPRESSED, format_of
from medcot.data.text import printable
from medcot.errors import InputError, nearest, one_line
from medcot.records import Language

SAMPLES = {BUNDLED_DATA: "cases", SHORT_DATA: "short"}
"""Names of the bundled cases, and the stems of their files."""

SAVED_SET, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What tells a folder that ``datasets`` saved: of one split, or of several."""

LARGEST_STATE = 1 << 24
"""Bytes read of such a file."""

MOST_FILES = 10_000
"""Files of a folder."""

_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json")
"""Files in which ``datasets`` describes those beside them."""

Kind = Literal["sample", "file", "snapshot", "hub"]
"""What a data set's name means; a snapshot is a folder of the hub's cache."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OTHER_FILES = (".txt", ".xlsx", ".xls", ".gz", ".zst", ".zip", ".bz2", ".xz")


def split_names(name: str) -> tuple[str, ...]:
    """Return the data sets that a config's ``dataset`` names, one or several."""
    return (name,) if _exists(name) else tuple(name.split(BETWEEN_DATA_SETS))


def kinds_of(name: str) -> tuple[Kind, ...]:
    """Return what each of the data sets is that a config's ``dataset`` names.

    Raises:
        InputError: as :func:`kind_of`.
    """
    return tuple([kind_of(one) for one in split_names(name)])


def kind_of(name: str) -> Kind:
    """Return what a data set's name means. An existing file takes precedence over a hub name.

    Raises:
        InputError: neither a name of bundled cases nor a file nor of the form ``owner/name``.
    """
    if name in SAMPLES:
        return "sample"
    if (snapshot := find_snapshot(name)) and snapshot.kind == "dataset":
        return "snapshot"
    if is_data_file(name) or format_of(name) in _OTHER_FILES or _exists(name):
        return "file"
    if _HUB_NAME.fullmatch(name):
        return "hub"
    kinds = "a .jsonl/.json/.csv/.parquet file, a folder, a hub name (owner/name)"
    needs = f"expected {kinds}, sample or sample-short"
    got = "neither a file nor a hub name"
    raise InputError(name, got, needs + nearest(name, list(SAMPLES)))


def is_data_file(name: str) -> bool:
    """Tell whether a name ends as a data file's does."""
    return format_of(name) in READERS


def stem_of(name: str) -> str:
    """Return a data file's name without its folder and suffixes."""
    path = PurePath(name)
    return PurePath(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem


def list_files(path: Path) -> list[Path]:
    """Return the data files that a path names: itself, or those of a folder in their order.

    Of a folder that ``datasets`` saved they are the parts of its set; of several splits, ``train``.

    Raises:
        InputError: a folder that cannot be read, without data files, with too many, or without a
            split to train on.
    """
    try:
        if not path.is_dir():
            return [path]
    except OSError:
        return [path]  # reading it names what is wrong with it
    if (path / SAVED_SPLITS).is_file():
        path = path / _choose_split(path)
    if (path / SAVED_SET).is_file():
        return _list_saved(path)
    try:
        found = sorted(
            one for one in path.iterdir()
            if is_data_file(one.name) and not one.name.startswith(".") and one.is_file()
            and one.name not in _DESCRIPTIONS
        )  # fmt: skip
    except OSError as error:
        needs = "expected a readable folder"
        raise InputError(str(path), error.strerror or str(error), needs) from None
    if not found:
        needs = f"expected some {', '.join(READERS)} in it"
        raise InputError(str(path), "found a folder without data files", needs)
    if len(found) > MOST_FILES:
        raise InputError(str(path), f"found {len(found):,} files", f"at most {MOST_FILES:,}")
    return found


def describe_passed_over(path: Path) -> tuple[str, ...]:
    """Return a note that names what in a folder may hold rows and is not read.

    Raises:
        InputError: as :func:`list_files`, for a folder that ``datasets`` saved.
    """
    try:
        if not path.is_dir() or (path / SAVED_SET).is_file():
            return ()
        if (path / SAVED_SPLITS).is_file():
            chosen = _choose_split(path)
            left = [one for one in _read_splits(path) if one != chosen]
        else:
            left = sorted(one.name for one in path.iterdir() if _may_hold_rows(one))
    except OSError:
        return ()
    shown = one_line(printable(", ".join(left)), 100)
    return (f"{path}: not read: {shown}",) if left else ()


def _may_hold_rows(path: Path) -> bool:
    """Tell whether a folder or file of a kind that is not read may hold rows."""
    if path.name.startswith("."):
        return False
    kind = format_of(path.name)
    return path.is_dir() or (kind in _OTHER_FILES and kind != ".txt")


def _read_splits(folder: Path) -> list[str]:
    return _read_names(folder / SAVED_SPLITS, lambda found: found["splits"])


def _choose_split(folder: Path) -> str:
    splits = _read_splits(folder)
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    got = f"found the splits {', '.join(splits) or '(none)'}"
    raise InputError(str(folder), got, "name the folder of one of them")


def _list_saved(folder: Path) -> list[Path]:
    def names(found: Any) -> list[str]:
        return [one["filename"] for one in found["_data_files"]]

    return [folder / name for name in _read_names(folder / SAVED_SET, names)]


def _read_names(path: Path, choose: Callable[[Any], Any]) -> list[str]:
    """Read names of files or folders next to ``path`` from it, a small JSON file."""
    try:
        with path.open("rb") as file:
            names = choose(json.loads(file.read(LARGEST_STATE)))
        if all(isinstance(one, str) and one == PurePath(one).name for one in names):
            return list(names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InputError(str(path), "not as datasets writes it", "save the set again with save_to_disk")


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
        for row in READERS[format_of(path)](path):
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
    if not is_data_file(path.name):
        got = f"found the extension {path.suffix or '(none)'!r}"
        raise InputError(str(path), got, f"expected one of {kinds}")
    if not size:
        raise InputError(str(path), "the file is empty", "expected at least one row")
    try:
        wrong = find_wrong_file(path, COMPRESSED.get(path.suffix.lower(), ""))
    except OSError as error:
        needs = "expected a readable file"
        raise InputError(str(path), error.strerror or str(error), needs) from None
    if wrong:
        raise InputError(str(path), *wrong)
