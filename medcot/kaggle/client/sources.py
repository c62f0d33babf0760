"""Collect the project's sources and metadata, the same bytes on every machine."""

from __future__ import annotations

import re
from pathlib import Path

import medcot
from medcot.kaggle.session.requirements import PROJECT, requirements

PACKAGE_FOLDER = "package"
"""The folder of the bundle that the kernel puts on ``sys.path``."""

_SUFFIXES = {".py", ".json", ".jsonl", ".toml", ".txt", ".md", ".jinja", ".css", ".js"}
_EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")


def collect_package(project: Path = PROJECT) -> dict[str, bytes]:
    """Map names in the bundle to contents: every source file, and one METADATA.

    ``importlib.metadata`` finds the metadata once :data:`PACKAGE_FOLDER` is on ``sys.path``, so
    that ``requires("medcot")`` works in the kernel without an installation.
    """
    files = {
        f"{PACKAGE_FOLDER}/medcot/{name}": content
        for name, content in _read_sources(project / "medcot").items()
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
        if path.suffix in _SUFFIXES and not hidden and path.is_file():
            found[inside.as_posix()] = read_with_unix_line_ends(path)
    return dict(sorted(found.items()))


def _write_metadata(pyproject: Path) -> str:
    lines = ["Metadata-Version: 2.3", "Name: medcot", f"Version: {medcot.__version__}"]
    lines.append("Requires-Python: >=3.11")
    needed = requirements(pyproject)
    extras = sorted({name for line in needed for name in _EXTRA.findall(line)})
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {line}" for line in needed]
    return "\n".join(lines) + "\n"
