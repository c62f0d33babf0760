"""Write what marimo shows of apps/tutorial.py where it has not run: its outputs, and a picture.

    .venv/bin/python .ci/snapshot.py            (or: make snapshot)
    .venv/bin/python .ci/snapshot.py --check    exit code 1 unless both are of this notebook

molab and marimo's editor read them from ``__marimo__`` beside the notebook. Both show the run that
comes with medcot, so nothing is trained.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOK = Path("apps", "tutorial.py")
SESSION = Path("apps", "__marimo__", "session", "tutorial.py.json")
THUMBNAIL = Path("apps", "__marimo__", "assets", "tutorial", "opengraph.png")
NOTE = "Notebook"
"""The text in the picture that says of which notebook it is."""

TAKE_PICTURE = "--take-picture"
PATIENCE_MS = 180_000


def main(words: list[str]) -> int:
    """Write both, or check them."""
    if words[:1] == [TAKE_PICTURE]:
        take_picture(words[1:])
        return 0
    if words == ["--check"]:
        stale = find_stale(PROJECT)
        if stale:
            print(f"not of this {NOTEBOOK}: {', '.join(map(str, stale))}; run: make snapshot")
        return bool(stale)
    write()
    return 0


def find_stale(project: Path) -> list[Path]:
    """Return which of the two files are missing or of another notebook."""
    from marimo._export._session_cache import is_session_snapshot_stale
    from marimo._utils.marimo_path import MarimoPath
    from PIL import Image

    notebook = project / NOTEBOOK
    stale = []
    if is_session_snapshot_stale(project / SESSION, MarimoPath(notebook)):
        stale.append(SESSION)
    try:
        with Image.open(project / THUMBNAIL) as picture:
            shown = picture.info.get(NOTE)
    except OSError:
        shown = None
    if shown != name_notebook(notebook):
        stale.append(THUMBNAIL)
    return stale


def name_notebook(notebook: Path) -> str:
    """Return a name of the cells' code: comments of the file's head change no picture."""
    import hashlib

    from marimo._export._session_cache import current_notebook_code_hashes
    from marimo._utils.marimo_path import MarimoPath

    hashes = current_notebook_code_hashes(MarimoPath(notebook))
    return hashlib.sha256("".join(map(str, hashes)).encode()).hexdigest()


def write() -> None:
    """Execute a copy of the notebook, away from the runs of this checkout, and keep both files."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "medcot")
        shutil.copytree(
            PROJECT / "apps", folder / "apps", ignore=shutil.ignore_patterns("__marimo__")
        )
        shutil.copy2(PROJECT / "pyproject.toml", folder)
        for made in (SESSION, THUMBNAIL):
            (PROJECT / made).parent.mkdir(parents=True, exist_ok=True)
        export(folder, [sys.executable, "-m", "marimo", "export", "session"], "--force-overwrite")
        text = (folder / SESSION).read_text(encoding="utf-8").replace(str(folder), "")
        (PROJECT / SESSION).write_text(text, encoding="utf-8")
        own = [sys.executable, str(Path(__file__).resolve()), TAKE_PICTURE, "export", "thumbnail"]
        # Twice this size would be larger than the whole notebook.
        export(folder, own, "--execute", "--overwrite", "--scale", "1", "--timeout-ms", "6000")
        sign(folder / THUMBNAIL, PROJECT / THUMBNAIL)


def export(folder: Path, command: list[str], *options: str) -> None:
    """Run one of marimo's exports of the notebook in ``folder``."""
    environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": str(PROJECT)}
    command = [*command, str(NOTEBOOK), "--no-sandbox", *options]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def sign(source: Path, target: Path) -> None:
    """Save the picture with few colours, and with the name of its notebook in it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text(NOTE, name_notebook(PROJECT / NOTEBOOK))
    with Image.open(source) as picture:
        picture.convert("RGB").quantize(128).save(target, optimize=True, pnginfo=note)


def take_picture(words: list[str]) -> None:
    """Run marimo's export of a picture with the Chromium of this machine, not Playwright's own."""
    from functools import partialmethod

    from playwright.async_api import BrowserType, Page

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    # What the page asks of other hosts would hold it up where there is no network.
    flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    BrowserType.launch = partialmethod(BrowserType.launch, executable_path=chromium, args=flags)
    Page.goto = partialmethod(Page.goto, timeout=PATIENCE_MS)
    sys.argv = ["marimo", *words]
    runpy.run_module("marimo", run_name="__main__")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
