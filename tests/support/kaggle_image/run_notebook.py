"""Executes a notebook as Kaggle's runner does, without Jupyter: ``run_notebook.py FILE PAGE``.

All code cells share one namespace. PAGE is the executed notebook, with what its cells print and
display, as one HTML file. The first error ends it, as it ends Kaggle's.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

SHOWN: list[str] = []
STYLE = """<style>
body { font: 15px sans-serif; max-width: 75rem; margin: 1rem auto; }
pre { background: #f4f4f4; padding: 0.5em; white-space: pre-wrap; }
.out { background: none; }
.md { white-space: pre-wrap; }
</style>"""


class HTML:
    def __init__(self, data: str) -> None:
        self.data = data


def display(*things: Any) -> None:
    SHOWN.extend(
        thing.data if isinstance(thing, HTML) else html.escape(str(thing)) for thing in things
    )


class Tee(io.StringIO):
    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
        return super().write(text)


def main(file: str, page: str) -> int:
    notebook = json.loads(Path(file).read_text(encoding="utf-8"))
    if not notebook["metadata"].get("kernelspec", {}).get("name"):
        raise SystemExit("ValueError: No kernel name found in notebook and no override provided")
    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    module.HTML, module.display = HTML, display  # type: ignore[attr-defined]
    package.display = module  # type: ignore[attr-defined]
    sys.modules |= {"IPython": package, "IPython.display": module}
    space: dict[str, Any] = {"__name__": "__main__"}
    parts, code = ["<!doctype html><meta charset='utf-8'><title>notebook</title>"], 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(f"<div class='md'>{html.escape(source)}</div>")
            continue
        folded = cell["metadata"].get("_kg_hide-input")
        parts.append(
            "<details><summary>code</summary></details>"
            if folded
            else f"<pre>{html.escape(source)}</pre>"
        )
        out = Tee()
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(source, cell["id"], "exec"), space)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code if isinstance(end.code, str) else "", flush=True)
        parts.append(f"<pre class='out'>{html.escape(out.getvalue())}</pre>")
        parts += SHOWN
        SHOWN.clear()
        if code:
            break
    Path(page).write_text("\n".join([*parts, STYLE]), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
