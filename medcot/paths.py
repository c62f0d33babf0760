"""Names the folders that medcot keeps outside a run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``MEDCOT_CACHE``, or ``medcot`` in the user's cache folder."""
    if chosen := os.environ.get("MEDCOT_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "medcot"
