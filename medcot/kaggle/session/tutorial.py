"""The command that executes the tutorial notebook and exports it as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def export_command(notebook: Path, page: Path, options: Sequence[str]) -> list[str]:
    """Return marimo's command that writes ``page``; ``options`` are the notebook's own.

    ``--force`` replaces an older page. ``--headless`` tells the notebook that nobody watches, which
    marimo does not.
    """
    command = [sys.executable, "-m", "marimo", "export", "html", str(notebook)]
    command += ["--output", str(page), "--force", "--no-sandbox"]
    return [*command, "--", "--headless", *options]
