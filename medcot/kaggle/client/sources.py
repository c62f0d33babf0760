"""Collect the project's sources and metadata, the same bytes on every machine."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import medcot
from medcot.kaggle.session.requirements import requirements
from medcot.paths import CARRIED, PACKAGE, PROJECT

PACKAGE_FOLDER = "package"
"""The folder of the bundle that the kernel puts on ``sys.path``."""

STAYS = (
    f"{CARRIED}/",
    "py.typed",
    "comparing/",
    "exporting/",
    "serving/",
    "kaggle/client/",
    "kaggle/session/secret_scan.py",
    "cli/compare.py",
    "cli/curve.py",
    "cli/doctor.py",
    "cli/kaggle.py",
    "cli/kaggle_options.py",
    "cli/study.py",
    "config/file_schema.py",
    "cli/study_table.py",
    "planning/validation.py",
    "planning/measured_runs.json",
    "pipeline/hand_labels.py",
    "pipeline/lm_eval.py",
    "pipeline/study.py",
    "pipeline/study_progress.py",
    "reporting/study.py",
    "reporting/words_",
    "data/inspection.py",
    "engines/fsdp/",
    "training/trainers/fsdp.py",
    "evaluation/grading.py",
    "evaluation/lm_eval.py",
    "evaluation/pair_labels.py",
    "evaluation/words_",
    "inference/remote.py",
    "stats/prediction_powered.py",
    "notebook/request_guard.py",
    "notebook/server.py",
    "notebook/static_pages.py",
    "notebook/static_site.py",
    "notebook/words_",
)
"""Packages and modules that no kernel runs; the bundle is small without them."""

_ADAPTER = "adapter"
"""The folder of a bundled run's weights, megabytes that a kernel asks nothing of."""

_SUFFIXES = {".py", ".json", ".jsonl", ".toml", ".txt", ".md", ".jinja", ".css", ".js"}
_EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")


def collect_package(project: Path = PROJECT) -> dict[str, bytes]:
    """Map names in the bundle to contents: every source file, and one METADATA.

    Python sources have no docstrings and comments, JSON no spaces, TOML no comments.

    ``importlib.metadata`` finds the metadata once :data:`PACKAGE_FOLDER` is on ``sys.path``, so
    that ``requires("medcot")`` works in the kernel without an installation.
    """
    own = project / "medcot"
    files = {
        f"{PACKAGE_FOLDER}/medcot/{name}": content
        for name, content in _read_sources(own if own.is_dir() else PACKAGE).items()
    }
    metadata = _write_metadata(project / "pyproject.toml")
    files[f"{PACKAGE_FOLDER}/medcot-{medcot.__version__}.dist-info/METADATA"] = metadata.encode()
    return files


def read_with_unix_line_ends(path: Path) -> bytes:
    """Read a text file as bytes; a checkout on Windows gives the same ones."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def _read_sources(package: Path) -> dict[str, bytes]:
    found = {}
    for path in package.rglob("*"):
        inside = path.relative_to(package)
        hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
        if inside.as_posix().startswith(STAYS) or _ADAPTER in inside.parts:
            continue
        if path.suffix in _SUFFIXES and not hidden and path.is_file():
            content = read_with_unix_line_ends(path)
            shorten = _SHORTEN.get(path.suffix)
            found[inside.as_posix()] = shorten(content) if shorten else content
    return dict(sorted(found.items()))


def strip_spaces(source: bytes) -> bytes:
    """Return the same JSON without the spaces and line ends that are for people."""
    return json.dumps(json.loads(source), ensure_ascii=False, separators=(",", ":")).encode()


def strip_comments(source: bytes) -> bytes:
    """Return the same TOML without the lines that are a comment, or empty; no text spans lines."""
    lines = source.splitlines(keepends=True)
    return b"".join(line for line in lines if line.strip() and not line.startswith(b"#"))


@lru_cache(maxsize=1024)
def strip_prose(source: bytes) -> bytes:
    """Blank the docstrings and comments of a Python source; every statement keeps its line.

    They are a quarter of the packed bundle, and a kernel never reads them. Nor does it need four
    spaces for a level of indentation: one makes the bundle 1 % smaller.
    """
    lines, tree = source.decode("utf-8").splitlines(keepends=True), ast.parse(source)
    inside_text = _rows_inside_text(tree)
    for text, is_alone in _find_bare_strings(tree):
        first, last = text.lineno - 1, text.end_lineno or text.lineno
        lines[first:last] = ["\n"] * (last - first)
        if is_alone:
            lines[first] = " " * text.col_offset + "pass\n"
    for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    for row, line in enumerate(lines, 1):
        spaces = len(line) - len(line.lstrip(" "))
        if row not in inside_text and spaces % 4 == 0:
            lines[row - 1] = line[spaces * 3 // 4 :]
    return "".join(lines).encode()


_SHORTEN = {".py": strip_prose, ".json": strip_spaces, ".toml": strip_comments}


def _rows_inside_text(tree: ast.Module) -> set[int]:
    """Return the rows, from 1, that begin inside a string of several lines."""
    return {
        row
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))
        for row in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }


def _find_bare_strings(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool]]:
    """Yield the statements that are only a string, and whether each is alone in its block."""
    for node in ast.walk(tree):
        found = getattr(node, "body", None)
        body: list[Any] = found if isinstance(found, list) else []
        for statement in body:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement, len(body) == 1


def _write_metadata(pyproject: Path) -> str:
    lines = ["Metadata-Version: 2.3", "Name: medcot", f"Version: {medcot.__version__}"]
    lines.append("Requires-Python: >=3.11")
    needed = requirements(pyproject)
    extras = sorted({name for line in needed for name in _EXTRA.findall(line)})
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {line}" for line in needed]
    return "\n".join(lines) + "\n"
