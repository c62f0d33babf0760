"""What was pushed for a run, kept in its run directory so that nothing is pushed twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from medcot.errors import InputError
from medcot.kaggle.client.build import FOLDER, Kernel
from medcot.runs.directory import RunDirectory

STATE = f"{FOLDER}/state.json"


@dataclass(frozen=True, slots=True)
class Push:
    """One version on Kaggle. ``version`` 0: sent without an answer, so look before sending again.

    ``outcome`` is "" while it runs, then done, paused, failed, killed, cancelled or timed out.
    ``progress`` counts the training steps and scored rows that the run had afterwards.
    """

    ref: str
    checksum: str
    session: int
    at: str
    version: int = 0
    url: str = ""
    outcome: str = ""
    progress: int = 0
    task: str = "run"


def read_pushes(run: RunDirectory) -> list[Push]:
    if not run.has(STATE):
        return []
    values: dict[str, Any] = run.read_json(STATE)
    return [Push(**push) for push in values["pushes"]]


def record(run: RunDirectory, push: Push) -> Push:
    """Keep ``push``, in place of what is kept of the same bundle's unanswered or same version."""
    kept = [
        old
        for old in read_pushes(run)
        if old.checksum != push.checksum or old.version not in (0, push.version)
    ]
    run.write_json(
        STATE,
        {
            "ref": push.ref,
            "version": push.version,
            "checksum": push.checksum,
            "config": run.config().model_dump(mode="json"),
            "pushes": [asdict(each) for each in [*kept, push]],
        },
    )
    return push


def intend(run: RunDirectory, kernel: Kernel) -> Push:
    """Say that ``kernel`` is about to be sent, before it is."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    orders = kernel.orders
    push = Push(kernel.ref, kernel.checksum, orders.session, now, task=orders.task)
    return record(run, push)


def answered(run: RunDirectory, push: Push, version: int, url: str) -> Push:
    return record(run, replace(push, version=version, url=url))


def runs_pushed(run: RunDirectory) -> list[Push]:
    """The pushes that Kaggle answered and that train, oldest first."""
    return [push for push in read_pushes(run) if push.version and push.task == "run"]


def last_push(run: RunDirectory) -> Push:
    """The newest push that Kaggle answered.

    Raises:
        InputError: nothing was pushed from this run directory.
    """
    sent = runs_pushed(run)
    if not sent:
        raise InputError(f"--out {run.path}", "nothing was pushed from it", "push it first")
    return sent[-1]
