"""Read the package's requirements from the checkout's pyproject.toml or from its metadata."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from medcot.paths import PROJECT


def requirements(pyproject: Path | None = None) -> list[str]:
    """Return the requirements as Requires-Dist lines, those of extras with their marker.

    Without a ``pyproject.toml``, as in the kernel, the metadata of the package is read; the list is
    empty if that is missing as well.
    """
    pyproject = pyproject or PROJECT / "pyproject.toml"
    if not pyproject.is_file():
        try:
            return list(requires("medcot") or ())
        except PackageNotFoundError:
            return []
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, wanted in project.get("optional-dependencies", {}).items():
        for line in wanted:
            need, _, marker = line.partition(";")
            both = f"({marker.strip()}) and " if marker else ""
            lines.append(f'{need.strip()}; {both}extra == "{extra}"')
    return lines
