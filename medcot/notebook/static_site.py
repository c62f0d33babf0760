"""Writes the executed notebook as static pages that need no server and no network.

``site/index.html`` and ``zh.html`` are marimo's own export with its assets beside them, for any
static server; ``tutorial-en.html`` and ``tutorial-zh.html`` hold everything in one file, without
a script, and open from disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from medcot.credentials import prepare_credentials, redact_values, redacted_output
from medcot.errors import InputError, RunFailed
from medcot.kaggle.session.tutorial import export_command
from medcot.network import prepare_network
from medcot.notebook.static_pages import (
    FILES,
    NOTEBOOK,
    PAGES,
    make_served_page,
    make_single_file,
)
from medcot.paths import PROJECT, expand_home
from medcot.records import Language
from medcot.runs.directory import RunDirectory
from medcot.runs.history import bundled_run, read_run
from medcot.terminal import say, write_json

SEVERAL_SEEDS = ("--seeds", "3")
"""What the English page trains where no options are given: its verdict is about the recipe."""

_CACHES = shutil.ignore_patterns("__marimo__", "__pycache__")


def build_site(out: Path, run: Path | None = None, options: Sequence[str] = ()) -> list[Path]:
    """Execute the notebook, write its pages into ``out`` and return them.

    Without ``run`` each page trains in its own language with ``options`` (those of the command
    line). Where these name a language, both show the one training; where there are none, the
    English page trains three seeds, and the Chinese one shows the run that comes with the package.

    Raises:
        InputError: no notebook here, or ``run`` is no run.
        RunFailed: the notebook did not come to its end.
    """
    if not NOTEBOOK.exists():
        raise InputError(
            "tutorial", f"{NOTEBOOK} does not exist", "run this in a checkout of the project"
        )
    if run is not None:
        _require_done(run)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="medcot-site-") as folder:
        # marimo keeps what a notebook showed beside it, and would show that again in its editor.
        shutil.copytree(NOTEBOOK.parent, Path(folder) / "apps", ignore=_CACHES)
        # Its theme is set there, and marimo looks for it above the notebook.
        shutil.copy2(PROJECT / "pyproject.toml", folder)
        exported: dict[Language, str] = {}
        for language in PAGES:
            told = run or _run_of_page(Path(folder), language, options)
            asked = ["--run", str(told)]
            if not told.exists():
                own = _language_of(language, options or SEVERAL_SEEDS)
                asked = ["--out", str(told), "--preset", "demo", *own]
            exported[language] = _execute(Path(folder), language, asked)
            _require_done(told)
    _copy_assets(out)
    return list(_write_pages(exported, out))


def _language_of(language: Language, options: Sequence[str]) -> list[str]:
    """Return ``options`` with the page's language, unless they name one."""
    return [*options] if _names_language(options) else ["--language", language, *options]


def _names_language(options: Sequence[str]) -> bool:
    return any(option.partition("=")[0] == "--language" for option in options)


def _run_of_page(folder: Path, language: Language, options: Sequence[str]) -> Path:
    """Return the run that a page shows; it is trained if it does not exist."""
    if language == "en" or _names_language(options):
        return folder / "tutorial"
    return folder / f"tutorial-{language}" if options else bundled_run(language).path


def _require_done(run: Path) -> None:
    """Refuse a run without a report: its page would show another run's verdict."""
    record = read_run(run)
    if record.has_report and record.stage == "done":
        return
    directory = RunDirectory(run)
    why = directory.read_json("error.json") if directory.has("error.json") else {}
    said = why.get("message", f"the run {run} is {record.stage} and has no report.")
    raise RunFailed("tutorial", said, why.get("remedy", "Finish it: medcot run --resume."))


def _execute(folder: Path, language: Language, asked: Sequence[str]) -> str:
    """Return the exported page. marimo exits with 0 even if a cell stopped, so read the page."""
    page = folder / PAGES[language]
    notebook = folder / "apps" / NOTEBOOK.name
    command = export_command(notebook, page, ["--interface", language, *asked])
    environment = os.environ | {"NO_COLOR": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=PROJECT
    )
    if done.returncode or not page.exists():
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise RunFailed("export", f"the notebook failed ({last}).", "Run it: medcot app")
    return page.read_text(encoding="utf-8")


def _write_pages(exported: dict[Language, str], out: Path) -> Iterator[Path]:
    for language, page in exported.items():
        served, single = make_served_page(page, language), make_single_file(page, language)
        for name, text in ((PAGES[language], served), (FILES[language], single)):
            (out / name).write_text(redact_values(text), encoding="utf-8")
            yield out / name


def _copy_assets(out: Path) -> None:
    import marimo

    source = Path(marimo.__file__).parent / "_static"
    for path in source.iterdir():
        if path.is_dir():
            shutil.copytree(path, out / path.name, dirs_exist_ok=True)
        elif path.suffix in (".ico", ".png", ".json", ".webmanifest"):
            shutil.copy2(path, out / path.name)


@click.command()
@click.option("--run", "run_path", metavar="DIR", help="show this finished run; trains otherwise")
@click.option("--out", default="site", show_default=True, metavar="DIR", help="where pages go")
@click.option("--json", "as_json", is_flag=True, help="print facts as JSON")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(run_path: str | None, out: str, options: tuple[str, ...], *, as_json: bool) -> None:
    """Write the executed tutorial as a static site; OPTIONS after -- are those of a run."""
    with redacted_output():
        try:
            prepare_credentials()
            prepare_network()
            run = Path(expand_home(run_path)).resolve() if run_path else None
            sizes = {
                str(page): page.stat().st_size
                for page in build_site(Path(expand_home(out)), run, options)
            }
            if as_json:
                write_json([{"page": page, "bytes": size} for page, size in sizes.items()])
                return
            for page, size in sizes.items():
                say(f"{page} ({size / 1024:,.0f} KB)")
        except InputError as error:
            say(f"medcot: {error}", err=True)
            sys.exit(2)
        except RunFailed as error:
            say(f"medcot: {error}", err=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
