"""Recognises folders of the hub's cache, which say what repository and commit they hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

COMMIT = re.compile("[0-9a-f]{40}")

_REPOSITORY = re.compile(r"(dataset|model)s--([^/]+?)(?:--([^/]+))?")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder of the hub's cache with the files of ``repository`` at ``commit``."""

    folder: Path
    kind: str
    repository: str
    commit: str


def find_snapshot(name: str) -> Snapshot | None:
    """Return the snapshot that a path names: itself, or that of a cached repository's main branch.

    None for every other path, also for one that does not exist.
    """
    try:
        path = Path(name).absolute()
        if _REPOSITORY.fullmatch(path.name) and (path / "refs" / "main").is_file():
            path = path / "snapshots" / (path / "refs" / "main").read_text("utf-8").strip()
        parent = path.parent.parent
        found = _REPOSITORY.fullmatch(parent.name)
        if found is None or path.parent.name != "snapshots" or not COMMIT.fullmatch(path.name):
            return None
        if not path.is_dir():
            return None
    except (OSError, ValueError):
        return None
    repository = "/".join(part for part in found.groups()[1:] if part)
    return Snapshot(path, found[1], repository, path.name)
