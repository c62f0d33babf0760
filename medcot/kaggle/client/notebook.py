"""Writes a kernel's script as a notebook: the same steps, one cell each, and a page at the end.

marimo's own converter makes the ``.ipynb``; of Jupyter nothing is needed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.errors import InputError, RunFailed, one_line

_HIDDEN = {"_kg_hide-input": True, "_kg_hide-output": False}
"""Kaggle's metadata of a cell whose code is folded."""
_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
"""Kaggle's runner asks for the name of a kernel, which marimo leaves out (kaggle-cli issue 689)."""
_EMPTY = 'PACKED = ""'
_SOURCES = """## medcot itself

The cells below hold medcot's sources, compressed, with their checksums, and unpack them. There is
nothing to read in them."""
_RESULT = """## The result

The verdict, the scores, the figures, and answers before and after, side by side."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell: Markdown, or code, which is folded if ``hidden``."""

    text: str
    markdown: bool = False
    hidden: bool = False


def write_notebook(script: str) -> str:
    """Return a kernel's ``script`` as the text of an ``.ipynb`` file.

    Raises:
        InputError: marimo is not installed.
        RunFailed: marimo could not convert it.
    """
    packed = _packed_lines(script)
    cells = list(_cells(script.replace(packed, _EMPTY)))
    notebook: dict[str, Any] = json.loads(_convert(cells))
    kept = [cell for cell in notebook["cells"] if "".join(cell["source"]) != "import marimo as mo"]
    for number, (made, cell) in enumerate(zip(kept, cells, strict=True)):
        made["id"] = f"cell-{number}"
        made["metadata"] = _HIDDEN if cell.hidden else {}
        if _EMPTY in cell.text:
            made["source"] = cell.text.replace(_EMPTY, packed).splitlines(keepends=True)
    metadata = {
        "kernelspec": _KERNEL,
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }
    made_notebook = {"cells": kept, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made_notebook, ensure_ascii=False, indent=1) + "\n"


def _packed_lines(script: str) -> str:
    """Return the assignment of the packed code, which is megabytes that marimo need not see."""
    start = script.index("\nPACKED = ") + 1
    return script[start : script.index('\n\nif __name__ == "__main__"', start)].rstrip("\n")


def _cells(script: str) -> Iterator[_Cell]:
    """Yield the cells: title, options, sources, one for each step of ``run``, and the result."""
    lines, tree = script.splitlines(), ast.parse(script)
    title, _, text = ast.get_docstring(tree, clean=True).partition("\n")  # type: ignore[union-attr]
    yield _Cell(f"# {title}\n\n{text.strip()}", markdown=True)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    constants = {
        node.targets[0].id: node
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for name in ("OPTIONS", "SESSION"):
        yield _Cell(_comment_above(lines, constants[name]), markdown=True)
        yield _Cell(_source(lines, constants[name]))
    yield _Cell(_SOURCES, markdown=True)
    values = [_source(lines, constants[name]) for name in ("BUNDLE", "CODE", "PACKED")]
    yield _Cell("\n".join(values), hidden=True)
    yield _Cell(_source(lines, functions["unpack"]), hidden=True)
    yield _Cell("## The run, step by step", markdown=True)
    for step in functions["run"].body[1:]:
        yield _Cell(_comment_above(lines, step), markdown=True)
        yield _Cell(textwrap.dedent(_source(lines, step)))
    yield _Cell(_RESULT, markdown=True)
    yield _Cell("session.show()")


def _source(lines: list[str], node: ast.stmt) -> str:
    return "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _comment_above(lines: list[str], node: ast.stmt) -> str:
    """Return the text of the comment right above a statement."""
    last = node.lineno - 1
    first = last
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return "\n".join(line.strip().removeprefix("#").strip() for line in lines[first:last])


def _convert(cells: list[_Cell]) -> str:
    """Write the cells as a marimo notebook and have marimo export it."""
    parts = ["import marimo\n\napp = marimo.App()", _as_cell("import marimo as mo")]
    for cell in cells:
        parts.append(_as_cell(f'mo.md(r"""\n{cell.text}\n""")' if cell.markdown else cell.text))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "kernel_source.py"), Path(folder, "kernel.ipynb")
        source.write_text("\n\n\n".join(parts) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "marimo", "export", "ipynb", str(source)]
        command += ["--output", str(target), "--sort", "top-down", "--no-sandbox"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if target.is_file():
            return target.read_text(encoding="utf-8")
    if "No module named marimo" in ended.stderr:
        needs = "run pip install 'medcot[app,kaggle]'"
        raise InputError("--as notebook", "marimo is not installed", needs)
    why = one_line(ended.stderr or ended.stdout, 200)
    raise RunFailed("build", f"marimo could not write the notebook ({why}).", "Use --as script.")


def _as_cell(code: str) -> str:
    return f"@app.cell\ndef _():\n{textwrap.indent(code, '    ')}"
