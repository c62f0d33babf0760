"""Tabulate the share of statements that the tests ran, by package, from ``.coverage``.

    python .ci/coverage_by_package.py [FILE]

Prints the table as Markdown, and writes it to FILE if one is named.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import NoSource

ROOT = Path(__file__).resolve().parents[1]

HEAD = """\
# Coverage of the tests

Written by `make coverage`, which runs the whole test suite and counts the statements of `medcot/`
that it runs. {date}, Python {python}, {cores} CPU cores, {gpu}.

Not seen, so the true shares are higher: what the tests start as programs of their own, and Triton's
kernels. Tests that need a GPU, the internet or a browser are skipped without one. A subpackage
counts for itself.
"""


def main(arguments: list[str]) -> None:
    """Read what `make coverage` measured, and print and write the page."""
    measured = Coverage()
    measured.load()
    statements: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for path in sorted((ROOT / "medcot").rglob("*.py")):
        try:
            _, every, _, missed, _ = measured.analysis2(str(path))
        except NoSource:
            continue
        package = path.parent.relative_to(ROOT).as_posix()
        statements[package] += len(every)
        missing[package] += len(missed)
    page = f"{describe()}\n{tabulate(statements, missing)}"
    print(page, end="")
    if arguments:
        Path(arguments[0]).write_text(page, encoding="utf-8")


def describe() -> str:
    """Return the head of the page: what was run, where and when."""
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    return HEAD.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        python=platform.python_version(),
        cores=os.cpu_count(),
        gpu="a GPU" if has_gpu else "no GPU",
    )


def tabulate(statements: Mapping[str, int], missing: Mapping[str, int]) -> str:
    """Render the shares as a Markdown table with a last line for all packages."""
    lines = ["| package | statements | run |", "| --- | ---: | ---: |"]
    lines += [
        _row(f"`{name}`", count, missing[name]) for name, count in statements.items() if count
    ]
    lines.append(_row("**all**", sum(statements.values()), sum(missing.values())))
    return "\n".join(lines) + "\n"


def _row(name: str, statements: int, missing: int) -> str:
    return f"| {name} | {statements:,} | {1 - missing / max(1, statements):.1%} |"


if __name__ == "__main__":
    main(sys.argv[1:])
