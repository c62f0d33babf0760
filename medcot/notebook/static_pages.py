"""Turns a notebook exported by marimo into pages that load nothing from other hosts."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

from medcot.errors import RunFailed
from medcot.paths import PROJECT
from medcot.records import Language

NOTEBOOK = PROJECT / "apps" / "tutorial.py"
PAGES: dict[Language, str] = {"en": "index.html", "zh": "zh.html"}
FILES: dict[Language, str] = {"en": "tutorial-en.html", "zh": "tutorial-zh.html"}
STOPPED = "ancestor-stopped"
"""marimo's name of the error of a cell that depends on one that stopped by ``mo.stop``."""

LANGUAGE_TAGS: dict[Language, str] = {"en": "en", "zh": "zh-CN"}

Cell = dict[str, Any]

_ASSETS = re.compile(r"https://cdn\.jsdelivr\.net/npm/@marimo-team/frontend@[^/]+/dist")
_PRELOADED_IMAGE = re.compile(r'<link rel="preload"[^>]* as="image" />')
_MOUNT = re.compile(
    r'"notebook": (?P<notebook>\{.*\}),\s*"session": (?P<session>\{.*\}),\s*"runtimeConfig"',
    re.DOTALL,
)


def make_served_page(page: str, language: Language) -> str:
    """Return an exported page that loads its assets from its own folder.

    marimo's own display of code is off: the sections show the code that they tell of.

    Raises:
        RunFailed: the page is not as marimo's export makes it, or a cell of it failed.
    """
    _require_page(page)
    head = _SERVED_STYLE + _FROM_DISK.format(file=FILES[language])
    page = page.replace('"showAppCode": true', '"showAppCode": false', 1)
    page = _PRELOADED_IMAGE.sub("", page).replace("</head>", head + "</head>", 1)
    tag = f'<html lang="{LANGUAGE_TAGS[language]}">'
    return _ASSETS.sub(".", page).replace('<html lang="en">', tag, 1)


def make_single_file(page: str, language: Language) -> str:
    """Return a page's outputs as plain HTML with inline style: no script, nothing to load.

    Raises:
        RunFailed: the page is not as marimo's export makes it, or a cell of it failed.
    """
    other: Language = "zh" if language == "en" else "en"
    cells = [
        f'<div class="mc-cell">{part}</div>'
        for cell, source in read_session(page)
        for part in read_cell(cell, source)
    ]
    _require_page(page)
    body = "\n".join(cells).replace(f'href="{PAGES[other]}"', f'href="{FILES[other]}"')
    style = (NOTEBOOK.parent / "tutorial.css").read_text(encoding="utf-8")
    title = re.search(r'class="mc-title">(.*?)</h1>', body)
    return _SHELL.format(
        language=LANGUAGE_TAGS[language],
        title=title[1] if title else "medcot",
        style=style + _PLAIN_STYLE,
        body=body,
    )


def read_session(page: str) -> list[tuple[Cell, Cell]]:
    """Return each cell of an exported page as its output and its source, in order.

    Raises:
        RunFailed: the page holds no session.
    """
    found = _MOUNT.search(page)
    if found is None:
        raise RunFailed("export", "the exported page has no session.", "Check marimo's version.")
    sources = {cell["id"]: cell for cell in json.loads(found["notebook"])["cells"]}
    return [(cell, sources[cell["id"]]) for cell in json.loads(found["session"])["cells"]]


def read_cell(cell: Cell, source: Cell) -> Iterator[str]:
    """Yield what a cell shows, as HTML.

    Raises:
        RunFailed: the cell failed.
    """
    _require_success(cell, source)
    for output in cell["outputs"]:
        yield from _as_html(output.get("data", {}))


def _require_page(page: str) -> None:
    """Refuse an export in which a cell failed, or whose first cell refused its options."""
    session = read_session(page)
    for cell, source in session:
        _require_success(cell, source)
    if not any("mc-title" in json.dumps(cell["outputs"]) for cell, _ in session):
        raise RunFailed("export", "the notebook shows no page.", "Run it: medcot app")


def _require_success(cell: Cell, source: Cell) -> None:
    for output in cell["outputs"]:
        # What a button would start is not run here, and so is nothing that depends on it.
        if output["type"] == "error" and output["ename"] != STOPPED:
            message = f"{source['name']} failed ({output['ename']}: {output['evalue']})."
            raise RunFailed("export", message, "Run it: medcot app")


def _as_html(data: dict[str, Any]) -> Iterator[str]:
    if content := data.get("text/html"):
        yield str(content)
    elif content := data.get("text/plain"):
        yield f"<pre>{html.escape(str(content))}</pre>"


_SERVED_STYLE = '<style>[data-testid="static-notebook-banner"] { display: none }</style>'
"""The page itself says that it is a record, so marimo's banner is hidden."""

_FROM_DISK = """<script>
if (location.protocol === "file:") location.replace("{file}");
</script>
"""
"""A browser loads no modules from disk, so the page that needs none takes over."""

_SHELL = """<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_PLAIN_STYLE = """
body { margin: 0; }
body { background: var(--mc-page); }
main { max-width: 68rem; margin: 0 auto; padding: 1rem; }
main { display: flex; gap: 0.9rem; }
body * { box-sizing: border-box; }
a { color: var(--mc-blue); }
@media (min-width: 75rem) { main { padding-left: 15rem; } }
"""
