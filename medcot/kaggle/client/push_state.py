"""The pushes of a run, kept in its run directory so that nothing is pushed twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from medcot.errors import InputError
from medcot.kaggle.client.build import FOLDER, Kernel
from medcot.runs.directory import RunDirectory

STATE = f"{FOLDER}/state.json"

PushOutcome = Literal["", "done", "paused", "failed", "killed", "cancelled", "timed out"]
"""What became of a pushed version: how its session signed off, or why it could not."""


@dataclass(frozen=True, slots=True)
class PushRecord:
    """One version on Kaggle, or one that may have been sent.

    ``version`` is 0 if it was sent and no answer came: look before sending again. ``outcome`` is
    empty until the result was fetched. ``progress`` counts the training steps and scored rows that
    the run had afterwards.
    """

    ref: str
    checksum: str
    session: int
    at: str
    version: int = 0
    url: str = ""
    outcome: PushOutcome = ""
    progress: int = 0
    task: str = "run"


def read_pushes(run: RunDirectory) -> list[PushRecord]:
    """Return every push of ``run``, oldest first."""
    if not run.has(STATE):
        return []
    values: dict[str, Any] = run.read_json(STATE)
    return [PushRecord(**push) for push in values["pushes"]]


def save_push(run: RunDirectory, push: PushRecord) -> PushRecord:
    """Save ``push``, replacing the entry of the same version or of the unanswered push."""
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


def record_intent(run: RunDirectory, kernel: Kernel) -> PushRecord:
    """Record that ``kernel`` is about to be sent, before it is."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    job = kernel.job
    push = PushRecord(kernel.ref, kernel.checksum, job.session, now, task=job.task)
    return save_push(run, push)


def record_answer(run: RunDirectory, push: PushRecord, version: int, url: str) -> PushRecord:
    """Record the version that Kaggle gave ``push``."""
    return save_push(run, replace(push, version=version, url=url))


def training_pushes(run: RunDirectory) -> list[PushRecord]:
    """Return the pushes that Kaggle answered and that train, oldest first."""
    return [push for push in read_pushes(run) if push.version and push.task == "run"]


def last_push(run: RunDirectory) -> PushRecord:
    """Return the newest push that Kaggle answered.

    Raises:
        InputError: nothing was pushed from this run directory.
    """
    sent = training_pushes(run)
    if not sent:
        raise InputError(f"--out {run.path}", "nothing was pushed from it", "push it first")
    return sent[-1]
