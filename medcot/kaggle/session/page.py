"""What a visitor of the kernel's page reads: the end of the log, the output files, a last cell."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from medcot.errors import RunFailed
from medcot.kaggle.session.steps import Session, run_with_package

PAGE = "report.html"
FIGURES_S = 120.0
_STYLE = """
.medcot { max-width: 70rem; line-height: 1.5; }
.medcot table { border-collapse: collapse; margin: 1em 0; }
.medcot th, .medcot td { border: 1px solid #8886; padding: 0.3em 0.6em; text-align: left;
  vertical-align: top; }
.medcot table.numbers td:not(:first-child) { text-align: right; }
.medcot table.sides th, .medcot table.sides td { width: 33%; }
.medcot img { max-width: 100%; background: white; }
.medcot blockquote { border-left: 3px solid #8886; margin-left: 0; padding-left: 1em; }
"""


def publish_report(session: Session) -> str:
    """Put the report's page and its figures as PNG where Kaggle shows them; return a note.

    The page is moved, not copied: `fetch` puts it back. Checkpoints of a run that is done are
    removed, since nothing continues from them.
    """
    shutil.rmtree(session.run / "checkpoints", ignore_errors=True)
    if not (session.run / PAGE).exists():
        return "report: none was written"
    command = ["-m", "medcot.kaggle.session.figures", str(session.run), str(session.output)]
    drawn = run_with_package(session, command, FIGURES_S)
    (session.run / PAGE).replace(session.output / PAGE)
    figures = sorted(path.name for path in session.output.glob("*.png"))
    failed = "" if drawn.code == 0 else "; not all figures could be drawn as PNG, see the log"
    return f"report: {', '.join([PAGE, *figures])}{failed}"


def report_lines(run: Path) -> Iterator[str]:
    """Yield the beginning of ``report.md`` as plain text: the verdict and the table of scores."""
    if not (run / "report.md").is_file():
        return
    text = (run / "report.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[:2]
    lines = [_plain(line) for part in parts for line in part.splitlines()]
    table = [line for line in lines if line.startswith("|")]
    widths = _widths(table)
    yield "-" * 72
    for line in lines:
        if not line.startswith("|"):
            yield line
        elif not re.fullmatch(r"[|:\- ]+", line):
            cells = zip(_cells(line), widths, strict=False)
            yield "  ".join(cell.ljust(width) for cell, width in cells).rstrip()


def _plain(line: str) -> str:
    """Return a line of Markdown without its marks."""
    line = re.sub(r"\*\*(.+?)\*\*", r"\1", line.removeprefix("# ").removeprefix("> "))
    return re.sub(r"\\([\\`*_\[\]<>|#!~$&])", r"\1", line).replace("&nbsp;", " ")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _widths(table: list[str]) -> list[int]:
    rows = [_cells(line) for line in table if not re.fullmatch(r"[|:\- ]+", line)]
    return [max(map(len, column)) for column in zip(*rows, strict=False)]


def show_report(output: Path, outcome: str) -> None:
    """Show the report of a finished session below a notebook's cell; without IPython, print it.

    Raises:
        RunFailed: the session ended well, but its report is missing.
    """
    page = output / PAGE
    if not page.is_file():
        if outcome == "done":
            raise RunFailed("report", f"{PAGE} is missing.", "See the log.")
        print(f"No report yet: this session ended as {outcome}. The log above says why.")
        return
    text = page.read_text(encoding="utf-8")
    language = re.search(r'<html lang="([\w-]+)"', text)
    shown = language[1] if language else "en"
    article = re.search(rf'<article lang="{shown}">.*?</article>', text, flags=re.DOTALL)
    body = article[0] if article else ""
    try:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("\n".join(report_lines(output / "run")))
        return
    display(HTML(f'<style>{_STYLE}</style><div class="medcot">{body}</div>'))
