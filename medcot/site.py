"""The static tutorial: the executed notebook as pages that need neither a server nor a network.

``site/index.html`` and ``zh.html`` are marimo's own export with its assets beside them, for any
static server; ``tutorial-en.html`` and ``tutorial-zh.html`` hold everything in one file, without
a script, and open from disk.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from medcot.errors import InputError, RunFailed
from medcot.history import read_run
from medcot.records import Language
from medcot.rundir import RunDirectory
from medcot.views.markup import code, details, localized
from medcot.views.words import say

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOK = PROJECT / "apps" / "tutorial.py"
PAGES: dict[Language, str] = {"en": "index.html", "zh": "zh.html"}
FILES: dict[Language, str] = {"en": "tutorial-en.html", "zh": "tutorial-zh.html"}
LANGUAGE_TAGS: dict[Language, str] = {"en": "en", "zh": "zh-CN"}

Cell = dict[str, Any]

_ASSETS = re.compile(r"https://cdn\.jsdelivr\.net/npm/@marimo-team/frontend@[^/]+/dist")
_CACHES = shutil.ignore_patterns("__marimo__", "__pycache__")
_PRELOADED_IMAGE = re.compile(r'<link rel="preload"[^>]* as="image" />')
_MOUNT = re.compile(
    r'"notebook": (?P<notebook>\{.*\}),\s*"session": (?P<session>\{.*\}),\s*"runtimeConfig"',
    re.DOTALL,
)


def build_site(out: Path, run: Path | None = None, options: Sequence[str] = ()) -> list[Path]:
    """Execute the notebook and write its pages into ``out``; gives the pages.

    Without ``run`` the first page trains with ``options`` (those of the command line), and the
    second shows the same run.

    Raises:
        InputError: no notebook here, or ``run`` is no run.
        RunFailed: the notebook did not come to its end.
    """
    if not NOTEBOOK.exists():
        raise InputError("tutorial", f"no {NOTEBOOK}", "a checkout of the project")
    if run is not None:
        _require_done(run)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="medcot-site-") as folder:
        # marimo keeps what a notebook showed beside it, and would show that again in its editor.
        shutil.copytree(NOTEBOOK.parent, Path(folder) / "apps", ignore=_CACHES)
        # Its theme is set there, and marimo looks for it above the notebook.
        shutil.copy2(PROJECT / "pyproject.toml", folder)
        told = run or Path(folder) / "tutorial"
        exported: dict[Language, str] = {}
        for language in PAGES:
            asked = ["--run", str(told)]
            if run is None and language == "en":
                asked = ["--out", str(told), "--preset", "demo", *options]
            exported[language] = _execute(Path(folder), language, asked)
            _require_done(told)
    _copy_assets(out)
    return list(_write_pages(exported, out))


def _require_done(run: Path) -> None:
    """A page is published of a whole run only: it would show another's verdict otherwise."""
    record = read_run(run)
    if record.report is not None and record.stage == "done":
        return
    directory = RunDirectory(run)
    why = directory.read_json("error.json") if directory.has("error.json") else {}
    said = why.get("message", f"the run {run} is {record.stage}, without a report.")
    raise RunFailed("tutorial", said, why.get("remedy", "Finish it: medcot run --resume."))


def _execute(folder: Path, language: Language, asked: Sequence[str]) -> str:
    """The exported page. marimo ends with 0 also where a cell stopped: the page is looked at."""
    page = folder / PAGES[language]
    command = [
        sys.executable,
        "-m",
        "marimo",
        "export",
        "html",
        str(folder / "apps" / NOTEBOOK.name),
    ]
    command += ["--output", str(page), "--force", "--no-sandbox", "--"]
    command += ["--headless", "--interface", language, *asked]
    environment = os.environ | {"NO_COLOR": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=PROJECT
    )
    if done.returncode or not page.exists():
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise RunFailed("export", f"the notebook failed ({last}).", "Run it: make app")
    return page.read_text(encoding="utf-8")


def _write_pages(exported: dict[Language, str], out: Path) -> Iterator[Path]:
    for language, page in exported.items():
        served, single = make_served_page(page, language), make_single_file(page, language)
        for name, text in ((PAGES[language], served), (FILES[language], single)):
            (out / name).write_text(text, encoding="utf-8")
            yield out / name


def _copy_assets(out: Path) -> None:
    import marimo

    source = Path(marimo.__file__).parent / "_static"
    for path in source.iterdir():
        if path.is_dir():
            shutil.copytree(path, out / path.name, dirs_exist_ok=True)
        elif path.suffix in (".ico", ".png", ".json", ".webmanifest"):
            shutil.copy2(path, out / path.name)


def make_served_page(page: str, language: Language) -> str:
    """An exported page with its assets beside it. Of the code only what teaches stays in sight.

    Raises:
        RunFailed: the page is not as marimo's export makes it, or a cell of it failed.
    """
    found, session = _MOUNT.search(page), read_session(page)
    assert found is not None
    for cell, source in session:
        if not source["config"]["hide_code"]:
            shown = "".join(read_cell(cell, source, language))
            cell["outputs"] = [{"type": "data", "data": {"text/html": shown}}]
    cells = json.loads(found["session"]) | {"cells": [cell for cell, _ in session]}
    # As in a script: nothing in the text may end the element that it stands in.
    written = json.dumps(cells).replace("<", "\\u003c")
    page = page[: found.start("session")] + written + page[found.end("session") :]
    page = page.replace('"showAppCode": true', '"showAppCode": false', 1)
    page = _PRELOADED_IMAGE.sub("", page).replace("</head>", _SERVED_STYLE + "</head>", 1)
    tag = f'<html lang="{LANGUAGE_TAGS[language]}">'
    return _ASSETS.sub(".", page).replace('<html lang="en">', tag, 1)


def make_single_file(page: str, language: Language) -> str:
    """An exported page's outputs as plain HTML with their style: no script, nothing to fetch.

    Raises:
        RunFailed: the page is not as marimo's export makes it, or a cell of it failed.
    """
    other: Language = "zh" if language == "en" else "en"
    cells = [
        f'<div class="mc-cell">{part}</div>'
        for cell, source in read_session(page)
        for part in read_cell(cell, source, language)
    ]
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
    """Each cell of an exported page as what it shows and what it is made of, in their order.

    Raises:
        RunFailed: the page holds no session.
    """
    found = _MOUNT.search(page)
    if found is None:
        raise RunFailed("export", "the exported page has no session.", "Check marimo's version.")
    sources = {cell["id"]: cell for cell in json.loads(found["notebook"])["cells"]}
    return [(cell, sources[cell["id"]]) for cell in json.loads(found["session"])["cells"]]


def read_cell(cell: Cell, source: Cell, language: Language) -> Iterator[str]:
    """What one cell shows, as HTML: its code where that is not hidden, and its output.

    Raises:
        RunFailed: the cell failed.
    """
    if not source["config"]["hide_code"]:
        title = say("code_of", language, name=source["name"])
        yield localized(details(title, code(source["code"]), opened=True), "en")
    for output in cell["outputs"]:
        if output["type"] == "error":
            message = f"{source['name']} failed ({output['ename']}: {output['evalue']})."
            raise RunFailed("export", message, "Run it: make app")
        yield from _as_html(output["data"])


def _as_html(data: dict[str, Any]) -> Iterator[str]:
    if content := data.get("text/html"):
        yield str(content)
    elif content := data.get("text/plain"):
        yield f"<pre>{html.escape(str(content))}</pre>"


_SERVED_STYLE = '<style>[data-testid="static-notebook-banner"] { display: none }</style>'
"""The page says by itself that it is a record."""

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
body { margin: 0; font-family: system-ui, "Noto Sans CJK SC", sans-serif; }
body { background: var(--mc-page); }
main { max-width: 46rem; margin: 0 auto; padding: 1rem; }
main { display: flex; flex-direction: column; gap: 0.9rem; }
body * { box-sizing: border-box; }
.mc-cell { min-width: 0; }
a { color: var(--mc-blue); }
.mc-text, .mc-tokens { max-height: none; }
"""


@click.command()
@click.option("--run", "run_path", metavar="DIR", help="show this finished run; trains otherwise")
@click.option("--out", default="site", show_default=True, metavar="DIR", help="where pages go")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(run_path: str | None, out: str, options: tuple[str, ...]) -> None:
    """Write the executed tutorial as a static site; OPTIONS after -- are those of a run."""
    try:
        run = Path(run_path).resolve() if run_path else None
        for page in build_site(Path(out), run, options):
            click.echo(f"{page} ({page.stat().st_size / 1024:,.0f} KB)")
    except InputError as error:
        click.echo(f"medcot: {error}", err=True)
        sys.exit(2)
    except RunFailed as error:
        click.echo(f"medcot: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
