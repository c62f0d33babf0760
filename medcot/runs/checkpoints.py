"""Writes and checks the manifests of checkpoints, which hold the checksum of each file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

MANIFEST = "manifest.json"
_UNFINISHED = f".{MANIFEST}"
"""The manifest while it is written."""
STATE = "trainer_state.json"
"""The file that the trainer writes last."""


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders ``checkpoint-STEP`` in ``folder``, newest first; others are ignored."""
    found = [one for one in folder.glob("checkpoint-*") if one.is_dir() and _step(one) is not None]
    return sorted(found, key=lambda one: _step(one) or 0, reverse=True)


def write_manifest(checkpoint: Path) -> None:
    """Write the size and SHA-256 of every file, after the files themselves are synced to disk."""
    marks = {
        path.name: _mark(path, sync=True)
        for path in sorted(checkpoint.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    temporary = checkpoint / _UNFINISHED
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"files": marks}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(checkpoint / MANIFEST)


def remove_unfinished_manifests(folder: Path) -> None:
    """Remove the manifests that a killed process was writing for the checkpoints in ``folder``."""
    for checkpoint in list_checkpoints(folder):
        (checkpoint / _UNFINISHED).unlink(missing_ok=True)


def find_damage(checkpoint: Path) -> str | None:
    """Return what differs from the manifest, "" where nothing does, None without a manifest.

    Checkpoints of earlier versions, and one whose writer was killed just before, have none.
    """
    path = checkpoint / MANIFEST
    if not path.exists():
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        marks = cast("Mapping[str, Mapping[str, Any]]", found["files"])
        for name, mark in marks.items():
            problem = _compare(checkpoint / Path(name).name, mark)
            if problem:
                return problem
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return ""


def _compare(path: Path, mark: Mapping[str, Any]) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != mark["bytes"]:
        return f"{path.name} has {size} bytes instead of {mark['bytes']}"
    return "" if _mark(path) == mark else f"{path.name} does not match its checksum"


def _mark(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _step(path: Path) -> int | None:
    found = re.fullmatch(r"checkpoint-([0-9]{1,12})", path.name)
    return int(found[1]) if found else None
