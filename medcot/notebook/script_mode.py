"""Makes a notebook as a script, `python apps/tutorial.py -- --headless`, behave like medcot."""

from __future__ import annotations

import sys
from pathlib import Path

from medcot.credentials import redact_streams
from medcot.notebook.jobs import Job
from medcot.notebook.results import ErrorText
from medcot.reporting.storage import read_report
from medcot.runs.environment import NOT_MEDICAL_ADVICE
from medcot.runs.history import RunRecord
from medcot.terminal import say

NOTEBOOKS = ("tutorial.py", "minimal.py")


def is_script() -> bool:
    """Return whether Python runs the notebook itself, and no server, export or test does."""
    import marimo as mo

    # __name__ does not tell: marimo calls the notebook __main__ in every program that runs it.
    return mo.app_meta().mode == "script" and Path(sys.argv[0]).name in NOTEBOOKS


def hide_secrets() -> None:
    """Hide secrets in what a script prints from now on, other libraries' lines included."""
    if is_script():
        redact_streams()


def refuse(failure: ErrorText | None) -> None:
    """Exit a script with the line of ``failure``: code 2 for wrong input, 1 otherwise."""
    if failure is None or not is_script():
        return
    wrong = failure.kind == "input"
    middle = f"{failure.what}; {failure.remedy}" if wrong else failure.what
    say(f"medcot: {failure.where}: {middle}", err=True)
    sys.exit(2 if wrong else 1)


def listen(line: str) -> None:
    """Print a line of a running training in a script; a page shows it itself."""
    if is_script():
        say(line)


def conclude(job: Job | None, shown: RunRecord) -> None:
    """Print the verdict of the shown run in a script, or exit with why the training failed."""
    if not is_script():
        return
    if job and job.state == "cancelled":
        say(f"medcot: cancelled; finished work is kept in {job.directory.path}", err=True)
        sys.exit(130)
    refuse(job.failure if job else None)
    if report := read_report(shown.path):
        say(f"{shown.path}: {report.verdict.sentence}\n{NOT_MEDICAL_ADVICE}")
