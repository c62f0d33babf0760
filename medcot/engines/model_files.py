"""Checks the files of a local model folder before a library reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from medcot.data.file_signatures import find_wrong_file
from medcot.errors import InputError, one_line

LARGEST_TEXT = 1 << 28
"""Bytes of a JSON or template file; the largest tokenizers have some 40 MiB."""

LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, as the format itself limits it."""

_TEXTS = (".json", ".jinja", ".txt")


def check_model_files(folder: Path) -> None:
    """Check that what a model folder holds are whole, regular files.

    Raises:
        InputError: a file is a device or pipe, a Git LFS pointer, a web page, compressed, cut, or
            far too large for what it is.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in (*_TEXTS, ".safetensors") and not path.is_dir():
            try:
                _check_file(path)
            except OSError as error:
                _refuse(path, error.strerror or str(error), "expected a readable file")


def _check_file(path: Path) -> None:
    if not path.is_file():
        _refuse(path, "not a regular file", "replace it with the model's own file")
    if path.suffix in _TEXTS and path.stat().st_size > LARGEST_TEXT:
        got = f"found {path.stat().st_size / 2**20:,.0f} MiB"
        _refuse(path, got, f"expected at most {LARGEST_TEXT >> 20} MiB")
    if wrong := find_wrong_file(path):
        _refuse(path, *wrong)
    if path.suffix == ".safetensors":
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    """Compare the file's size with what its header lists."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            _refuse(path, f"a cut or damaged file of {size:,} bytes", "fetch it again")
        try:
            header = json.loads(file.read(length))
            ends = [
                one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"
            ]
            expected = 8 + length + max(ends, default=0)
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            RecursionError,
        ) as error:
            got = f"its header cannot be read ({one_line(str(error), 60)})"
            _refuse(path, got, "fetch it again")
    if size != expected:
        _refuse(path, f"{size:,} bytes of {expected:,}: it is cut or damaged", "fetch it again")


def _refuse(path: Path, got: str, needs: str) -> NoReturn:
    raise InputError(f"--model {path}", got, needs)
