"""Where things lie: the project, rows for development, the real cache."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder."""

DEV_DATA = Path(os.environ.get("MEDCOT_DEV_DATA") or ROOT.parent / "shared" / "data")
REAL_CACHE = Path(os.environ.get("MEDCOT_CACHE") or Path.home() / ".cache" / "medcot")
