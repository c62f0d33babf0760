"""Reads prose in sections: ``# key | Title`` lines, each with Markdown below it."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medcot.errors import InputError
from medcot.paths import PROJECT

_SECTION = re.compile(r"^# (\w+) \| (.*)$", re.MULTILINE)
_VALUE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Section:
    """A section's title, and its text as Markdown."""

    title: str
    body: str


@dataclass(frozen=True)
class Prose:
    """The prose of one language. ``language`` is en or zh."""

    language: str
    sections: Mapping[str, Section]

    def title(self, key: str) -> str:
        """Return the title of the section ``key``."""
        return self.sections[key].title

    def body(self, key: str, **values: object) -> str:
        """Return the Markdown of ``key`` with each ``{{name}}`` replaced by its value.

        Raises:
            KeyError: a value that the text asks for is missing.
        """
        return _VALUE.sub(lambda found: str(values[found[1]]), self.sections[key].body)


def read_prose(folder: Path, language: str) -> Prose:
    """Read ``prose_LANGUAGE.md`` in ``folder``; for a notebook alone there, the package's own.

    Raises:
        InputError: the file is missing, or names a section twice.
    """
    name = f"prose_{language}.md"
    path = folder / name if (folder / name).is_file() else PROJECT / "apps" / name
    if not path.exists():
        raise InputError(str(path), "no such file", "expected the prose next to the notebook")
    _, *pieces = _SECTION.split(path.read_text(encoding="utf-8"))
    found: dict[str, Section] = {}
    for key, title, body in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        if key in found:
            raise InputError(str(path), f"found the section {key} twice", "name each section once")
        found[key] = Section(title.strip(), body.strip())
    return Prose(language, found)


def list_sections(prose: Prose) -> list[tuple[str, str]]:
    """Return key and title of every section, in order."""
    return [(key, section.title) for key, section in prose.sections.items()]


def cell_sources(notebook: str) -> dict[str, str]:
    """Return the code of each cell of a notebook's source, without its function's frame."""
    lines = notebook.splitlines()
    found: dict[str, str] = {}
    for cell in ast.parse(notebook).body:
        if not isinstance(cell, ast.FunctionDef):
            continue
        start = next(n for n in range(cell.lineno, len(lines) + 1) if lines[n - 1].endswith(":"))
        last = cell.body[-1]
        end = last.lineno - 1 if isinstance(last, ast.Return) else last.end_lineno
        found[cell.name] = textwrap.dedent("\n".join(lines[start:end]))
    return found
