"""Builds, pushes and follows kernels for the notebook's Kaggle panel."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medcot.errors import InputError, RunFailed
from medcot.notebook.jobs import Job, JobListener, State
from medcot.notebook.results import describe_error
from medcot.runs.directory import RunDirectory, new_run_path

# A kernel executes the notebook as well, and has nothing of the client.
if TYPE_CHECKING:
    from medcot.config.schema import RunConfig
    from medcot.kaggle.client.account import Account
    from medcot.kaggle.client.build import Kernel
    from medcot.kaggle.client.orchestrate import AccountCheck
    from medcot.kaggle.client.push_state import PushRecord


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel folder, ready to push, and the run that it belongs to."""

    kernel: Kernel
    run: RunDirectory


def look_at_account() -> AccountCheck:
    """Check, by asking Kaggle, whether a push could be made from this machine."""
    from medcot.kaggle.client.orchestrate import check_account

    return check_account()


def build_kernel(config: RunConfig) -> BuiltKernel:
    """Build the kernel folder of a new run of ``config``; nothing is sent.

    Raises:
        InputError: no account name is known, or the config names files that cannot be sent.
    """
    from medcot.kaggle.client.build import KernelOptions, build, find_owner

    run = RunDirectory(new_run_path(config))
    return BuiltKernel(build(config, run, find_owner(), KernelOptions()), run)


def push_kernel(built: BuiltKernel) -> PushRecord:
    """Push a built kernel, which starts a session and spends quota, and follow it.

    Raises:
        InputError, RunFailed: as :func:`medcot.kaggle.client.push.push`.
    """
    from medcot.kaggle.client.account import connect
    from medcot.kaggle.client.push import push
    from medcot.kaggle.client.retry import RetryPolicy

    account = connect(RetryPolicy(limit_s=60.0))
    sent = push(account, built.kernel, built.run, lambda _: None)
    WATCHER.follow(account, sent, built.run)
    return sent


def watch_newest_kernel() -> PushRecord:
    """Follow the kernel of the newest run that has one, whoever pushed it.

    Raises:
        InputError: there is none, or it was not pushed.
    """
    from medcot.kaggle.client.account import connect
    from medcot.kaggle.client.adopt import find_push
    from medcot.kaggle.client.build import KERNEL_FOLDER
    from medcot.kaggle.client.retry import RetryPolicy

    runs = [RunDirectory(path.parents[1]) for path in Path("runs").glob(f"*/{KERNEL_FOLDER}")]
    if not runs:
        raise InputError("runs/", "no run in it has a kernel", "build and push one first")
    run = max(runs, key=lambda one: (one.path / KERNEL_FOLDER).stat().st_mtime)
    account = connect(RetryPolicy(limit_s=60.0))
    sent = find_push(account, run, lambda _: None)
    WATCHER.follow(account, sent, run)
    return sent


class KernelWatcher:
    """Follows one kernel in a thread, as a :class:`Job` that the page shows like its own."""

    def __init__(self) -> None:
        self._job: Job | None = None

    def current_job(self) -> Job | None:
        """Return the run of the kernel that is followed, or was followed last."""
        return self._job

    def is_watching(self) -> bool:
        """Return whether the followed kernel has not ended yet."""
        return self._job is not None and self._job.state == "running"

    def ended_job(self) -> Job | None:
        """Return the followed run once it has ended."""
        return None if self.is_watching() else self._job

    def follow(self, account: Account, sent: PushRecord, run: RunDirectory) -> Job:
        """Follow ``sent`` until it ends and its output is in ``run``; return at once."""
        job = self._job = Job(run.config(), run, owner="")
        threading.Thread(
            target=_follow, args=(job, account, sent), daemon=True, name="medcot-kaggle"
        ).start()
        return job


def last_ended(*jobs: Job | None) -> Job | None:
    """Return the job that was active last, or None without any."""
    return max((job for job in jobs if job), key=lambda job: job.began, default=None)


WATCHER = KernelWatcher()
"""The one watcher of this process."""
INTERVAL_S = 10.0
"""Seconds between two requests for a kernel's status."""


def _follow(job: Job, account: Account, sent: PushRecord) -> None:
    from medcot.kaggle.client.live import LogReader
    from medcot.kaggle.client.orchestrate import fetch_and_record
    from medcot.kaggle.client.wait import wait

    listener = JobListener(job)
    try:
        reader = LogReader(listener)
        status, _ = wait(account, sent, listener.say, reader, interval=INTERVAL_S)
        result = fetch_and_record(account, sent, job.directory, listener.say, status)
        if result.outcome == "failed":
            job.failure = describe_error(RunFailed("Kaggle", str(job.lines[-1]), ""))
        job.state = _STATES.get(result.outcome, "cancelled")
    except Exception as error:  # noqa: BLE001 - the page shows the reason; the thread must end
        job.failure, job.state = describe_error(error), "failed"
    finally:
        job.ended.set()


_STATES: dict[str, State] = {"done": "done", "failed": "failed"}
"""States of a job by a session's outcome; a run after any other one can be continued."""
