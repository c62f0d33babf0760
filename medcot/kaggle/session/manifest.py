"""`manifest.json`: what a session left behind. The kernel writes it, `fetch` reads it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

NAME = "manifest.json"
STAMP = "session.json"
"""Written when a session starts, so that the output of a killed session can be recognised."""

SessionOutcome = Literal["done", "paused", "failed"]
"""How a session that could sign off ended."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and hexadecimal SHA-256 of an output file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """How a session ended, and its files by name.

    ``exit_code`` is the training's own; ``notes`` are lines for the user.
    """

    bundle: str
    run: str
    session: int
    outcome: SessionOutcome
    exit_code: int
    seconds: float
    notes: tuple[str, ...] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict[str, FileEntry])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Add the files under ``folder`` to ``manifest`` and write it there."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != NAME
    }
    text = json.dumps(asdict(replace(manifest, files=files)), indent=2)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(text: str) -> Manifest:
    """Parse ``text``.

    Raises:
        ValueError: ``text`` is not a manifest.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        files = {name: _read_entry(entry) for name, entry in values["files"].items()}
        notes = tuple(str(note) for note in values["notes"])
        found = Manifest(**values | {"notes": notes, "files": files})
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a manifest: {error}") from None
    numbers = (found.session, found.exit_code)
    if not (
        found.outcome in get_args(SessionOutcome)
        and all(isinstance(one, int) for one in numbers)
        and isinstance(found.bundle, str)
    ):
        raise ValueError("not a manifest: a value of another type")
    return found


def _read_entry(entry: dict[str, Any]) -> FileEntry:
    size, digest = entry["size"], entry["sha256"]
    if type(size) is not int or size < 0:
        raise ValueError(f"a size of {size!r}")
    if not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise ValueError(f"a checksum of {digest!r}")
    return FileEntry(size, digest)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
