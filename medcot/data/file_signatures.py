"""Recognises files that are not what their name says, by their first bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

LFS_POINTER = b"version https://git-lfs"
"""How the text begins that Git LFS leaves in place of a large file."""

_HEAD = 64
_HTML = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)


class WrongFile(NamedTuple):
    """What a file is instead of what was expected, and what to do about it."""

    got: str
    needs: str


_CONTAINERS = (
    (b"\x1f\x8b", WrongFile("found gzip data", "unpack it first (gunzip)")),
    (b"BZh", WrongFile("found bzip2 data", "unpack it first (bunzip2)")),
    (b"\xfd7zXZ", WrongFile("found xz data", "unpack it first (unxz)")),
    (b"\x28\xb5\x2f\xfd", WrongFile("found zstd data", "unpack it first (unzstd)")),
    (
        b"PK\x03\x04",
        WrongFile("found a zip archive or a spreadsheet", "unpack it, or export it as CSV (UTF-8)"),
    ),
)


def find_wrong_file(path: Path, packed: str = "") -> WrongFile | None:
    """Return what the file is if it is an LFS pointer, a web page or a compressed file.

    ``packed`` is what its name says that it is: "gzip", "zstd", or "" for none of them.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(LFS_POINTER):
        got = f"found a Git LFS pointer of {path.stat().st_size} bytes in place of the file"
        return WrongFile(got, "fetch the file itself with git lfs pull")
    if _HTML.match(head):
        return WrongFile("found a web page", "download the file itself, not the page that shows it")
    found = next((found for magic, found in _CONTAINERS if head.startswith(magic)), None)
    if not packed:
        return found
    if found and found.got == f"found {packed} data":
        return None
    return found or WrongFile(f"found no {packed} data", "name the file by what it is")
