"""The notebook as a script, `python apps/tutorial.py -- --headless`, speaks and ends as medcot."""

from __future__ import annotations

import sys
from pathlib import Path

from medcot.notebook.jobs import Job
from medcot.notebook.outcomes import Failure
from medcot.runs.environment import NOT_MEDICAL_ADVICE
from medcot.runs.history import RunRecord

NOTEBOOK = "tutorial.py"


def is_script() -> bool:
    """Whether Python runs the notebook itself: neither a server, nor an export, nor a test does."""
    import marimo as mo

    # Not by __main__, which marimo makes the notebook also where another program runs it.
    return mo.app_meta().mode == "script" and Path(sys.argv[0]).name == NOTEBOOK


def refuse(failure: Failure | None) -> None:
    """End a script over ``failure``, with one line: exit code 2 for wrong input, 1 otherwise."""
    if failure is None or not is_script():
        return
    wrong = failure.kind == "input"
    middle = f"{failure.what}; {failure.remedy}" if wrong else failure.what
    print(f"medcot: {failure.where}: {middle}", file=sys.stderr)
    sys.exit(2 if wrong else 1)


def listen(line: str) -> None:
    """A line of a run that goes on: printed by a script, shown by a page."""
    if is_script():
        print(line, flush=True)


def conclude(job: Job | None, shown: RunRecord) -> None:
    """What a script ends with: why the training failed, or the verdict of the run that is shown."""
    if not is_script():
        return
    if job and job.state == "cancelled":
        print(
            f"medcot: cancelled; everything done is kept in {job.directory.path}", file=sys.stderr
        )
        sys.exit(130)
    refuse(job.failure if job else None)
    if shown.report:
        print(f"{shown.path}: {shown.report['verdict']['sentence']}\n{NOT_MEDICAL_ADVICE}")
