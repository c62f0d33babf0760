"""Names the project's own folders, and those that medcot keeps outside a run."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CARRIED = "_project"
"""The folder of an installed wheel's package with the files that a checkout has beside it."""
PROJECT = PACKAGE / CARRIED if (PACKAGE / CARRIED).is_dir() else PACKAGE.parent
"""Where ``apps/``, ``kaggle/`` and ``pyproject.toml`` are."""


def expand_home(path: str) -> str:
    """Return ``path`` with the user's folder for a ``~`` at its begin.

    A shell does this for words of their own only: not behind ``=``, and not in a file.
    """
    return os.path.expanduser(path)  # noqa: PTH111 - Path's own fails for unknown users


def exists(name: str) -> bool:
    """Return whether there is a file or folder ``name``; not so for names that cannot be."""
    return os.path.exists(name)  # noqa: PTH110 - Path's own raises for names that are too long


def is_folder(name: str) -> bool:
    """Return whether there is a folder ``name``; not so for names that cannot be."""
    return os.path.isdir(name)  # noqa: PTH112 - as above


def cache_folder() -> Path:
    """Return ``MEDCOT_CACHE``, or ``medcot`` in the user's cache folder."""
    if chosen := os.environ.get("MEDCOT_CACHE"):
        return Path(expand_home(chosen))
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "medcot"
