"""Run on Kaggle from end to end: build, push, wait, fetch; once, or until the run is done."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from medcot.config.schema import RunConfig
from medcot.credentials import Redactor, has_wandb_login, known_secrets
from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.account import Account, connect
from medcot.kaggle.client.build import FOLDER, KernelOptions, build
from medcot.kaggle.client.fetch import FetchedOutput, fetch
from medcot.kaggle.client.push import describe_secret_setup, push
from medcot.kaggle.client.push_state import PushOutcome, PushRecord, save_push, training_pushes
from medcot.kaggle.client.retry import RetryPolicy
from medcot.kaggle.client.wait import FinalStatus, wait
from medcot.kaggle.session.job import JobSpec, Task
from medcot.kaggle.session.subprocesses import Say, run_command
from medcot.network import is_offline
from medcot.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class KaggleRun:
    """A run to carry out on Kaggle, and how to report on it.

    ``say`` gets the client's own lines and ``show_log`` each line of the live log (None: no log).
    ``interval_s`` is the time between two status requests.
    """

    account: Account
    config: RunConfig
    directory: RunDirectory
    options: KernelOptions
    say: Say
    show_log: Say | None = None
    interval_s: float = 20.0


@dataclass(frozen=True, slots=True)
class KaggleResult:
    """How the last session left its run.

    ``exit_code`` is that of ``push.py run``: the run's own 1 or 2, 3 cancelled, 4 out of time.
    ``progress`` counts the training steps and scored rows that were fetched.
    """

    outcome: PushOutcome
    exit_code: int
    step: int
    progress: int


def run_on_kaggle(run: KaggleRun, *, until_done: bool = False, again: bool = False) -> KaggleResult:
    """Build, push, wait and fetch; with ``until_done``, continue in new sessions until it is done.

    Called again for the same run directory, it continues where it stopped: it waits for a version
    that is still running and continues a paused run. A failed run is retried only with ``again``.

    Raises:
        InputError, RunFailed: as the parts; or a session made no progress.
    """
    while True:
        sent = _find_open_push(run, again=again) or _push_next(run, again=again)
        result = wait_and_fetch(run, sent)
        if not until_done or result.outcome in _FINAL:
            return result
        if result.progress <= _progress_before(run.directory, sent):
            raise RunFailed(
                "run",
                f"session {sent.session} ended ({result.outcome}) without progress.",
                f"Look at its log, {run.directory.path / FOLDER / f'v{sent.version}.log'}.",
            )
        again = False
        run.say(
            f"session {sent.session} ended at step {result.step} ({result.outcome}); continuing"
        )


def wait_and_fetch(run: KaggleRun, sent: PushRecord) -> KaggleResult:
    """Wait for ``sent`` to end, fetch its output, and record the result in the run directory."""
    status, message = wait(run.account, sent, run.say, run.show_log, interval=run.interval_s)
    if message:
        run.say(f"Kaggle says: {message}")
    return fetch_and_record(run.account, sent, run.directory, run.say, status)


def fetch_and_record(
    account: Account, sent: PushRecord, run: RunDirectory, say: Say, status: FinalStatus
) -> KaggleResult:
    """Fetch the output of the ended session ``sent``, and record and report the result.

    The reason of a failed run is the last line that ``say`` gets.
    """
    fetched = _fetch_listed(account, sent, run, say, status)
    for note in fetched.manifest.notes if fetched.manifest else ():
        say(note)
    result = _make_result(fetched, status, run)
    save_push(run, replace(sent, outcome=result.outcome, progress=result.progress))
    sync_wandb(run, say)
    if result.outcome == "failed" and run.has("error.json"):
        error = run.read_json("error.json")
        say(f"{error['stage']}: {error['message']} {error.get('remedy', '')}".rstrip())
    return result


def probe_secrets(run: KaggleRun) -> list[str]:
    """Ask the kernel which secrets it is given: a CPU session of about a minute.

    Raises:
        InputError, RunFailed: as :func:`run_probe`.
    """
    return run_probe(run, "secrets")


def run_probe(run: KaggleRun, task: Task) -> list[str]:
    """Send a free CPU session that trains nothing, fetch its output, and return its lines.

    Secrets belong to a kernel, so the probe is a version of the kernel that trains later.

    Raises:
        InputError, RunFailed: as the parts; or the probe did not end well.
    """
    job = replace(run.options.job, task=task)
    options = replace(run.options, gpu=False, limit_s=1200, margin_s=60, job=job)
    kernel = build(run.config, run.directory, run.account.user, options)
    sent = push(run.account, kernel, run.directory, run.say, public=options.public, again=True)
    status, message = wait(run.account, sent, run.say, run.show_log, interval=run.interval_s)
    fetched = fetch(run.account, sent, run.directory, run.say)
    save_push(run.directory, replace(sent, outcome=status.text))
    if status is not FinalStatus.DONE or fetched.manifest is None:
        raise RunFailed(task, f"the probe ended as {status.text}. {message}", "")
    secrets = [line for line in fetched.manifest.notes if line.startswith(_labels(job))]
    missing = [line for line in secrets if ": ok (" not in line]
    if missing and sent.version > 1:  # the first push has already said so
        run.say(describe_secret_setup(sent.ref, job))
    return list(fetched.manifest.notes)


def _labels(job: JobSpec) -> tuple[str, ...]:
    return tuple(f"{label}: " for label in (*job.hub_labels, *job.wandb_labels))


def sync_wandb(run: RunDirectory, say: Say) -> None:
    """Send offline W&B runs if this machine has a W&B login; otherwise say how to send them."""
    redact = Redactor(known_secrets())

    def say_redacted(line: str) -> None:
        say(redact(line))

    for path in sorted((run.path / "wandb").glob("offline-run-*")):
        if (path / "synced").exists() or list(path.glob("*.synced")):
            continue
        if not has_wandb_login() or is_offline():
            say(f"W&B was offline; to send it: wandb sync {path}")
            continue
        command = [sys.executable, "-m", "wandb", "sync", str(path)]
        if run_command(command, say_redacted, seconds=_SYNC_S).code:
            say(f"W&B could not be synced; try again: wandb sync {path}")


@dataclass(frozen=True, slots=True)
class AccountCheck:
    """What ``medcot doctor`` and the notebook say about the Kaggle account, in one line."""

    ready: bool
    line: str


def check_account() -> AccountCheck:
    """Check, by asking Kaggle, whether a push could be made from this machine. Never raises."""
    try:
        account = connect(RetryPolicy(limit_s=5.0))
        quota = account.quota()
    except (InputError, RunFailed) as error:
        return AccountCheck(ready=False, line=str(error))
    if quota is None:
        line = f"signed in as {account.user}; Kaggle names no GPU quota"
        return AccountCheck(ready=True, line=line)
    hours = f"{quota.left_h:.1f} of {quota.allowed_h:.0f} GPU hours left this week"
    return AccountCheck(ready=quota.left_h > 0, line=f"signed in as {account.user}, {hours}")


_SYNC_S = 1800.0
"""Seconds that sending one offline W&B run may take."""

_LISTINGS, _LISTING_S = 10, 10.0
"""How often, and how many seconds apart, the output of a session that ended well is asked for."""

_RESUMABLE = ("paused", "killed", "cancelled", "timed out")
"""Outcomes after which the next push continues the run."""

_FINAL = ("done", "failed", "cancelled")
"""Outcomes after which even ``until_done`` stops: a person had a reason to cancel."""


def _push_next(run: KaggleRun, *, again: bool) -> PushRecord:
    last = next(reversed(training_pushes(run.directory)), None)
    options = run.options
    if last and (last.outcome in _RESUMABLE or (again and last.progress)):
        job = replace(options.job, session=last.session + 1, previous=last.ref)
        options = replace(options, job=job)
    kernel = build(run.config, run.directory, run.account.user, options)
    return push(run.account, kernel, run.directory, run.say, public=options.public, again=again)


def _fetch_listed(
    account: Account, sent: PushRecord, run: RunDirectory, say: Say, status: FinalStatus
) -> FetchedOutput:
    """Fetch; Kaggle's list of files can lag behind a session that ended well."""
    for _ in range(_LISTINGS):
        fetched = fetch(account, sent, run, say)
        if fetched.manifest is not None or status is not FinalStatus.DONE:
            return fetched
        account.policy.sleep(_LISTING_S)
    raise RunFailed(
        "fetch", f"Kaggle does not list version {sent.version}'s output yet.", "Fetch again later."
    )


def _find_open_push(run: KaggleRun, *, again: bool) -> PushRecord | None:
    """Return the push whose result is to be fetched, or None if a new one is to be made.

    A run that has ended is not pushed again, even if the project has changed since and its bundle
    is another.
    """
    last = next(reversed(training_pushes(run.directory)), None)
    if last is None or last.outcome in _RESUMABLE or (last.outcome and again):
        return None
    if last.outcome:
        run.say(
            f"version {last.version} of {last.ref} has ended this run ({last.outcome}): "
            "not pushed again, --again does that"
        )
    return last


def _progress_before(run: RunDirectory, sent: PushRecord) -> int:
    earlier = [old.progress for old in training_pushes(run) if old.version < sent.version]
    return max(earlier, default=0)


def _make_result(fetched: FetchedOutput, status: FinalStatus, run: RunDirectory) -> KaggleResult:
    checkpoint = run.last_checkpoint()
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    scored = [len(list(run.rows(run.evaluation(phase)))) for phase in ("before", "after")]
    progress = step + sum(scored)
    manifest = fetched.manifest
    if manifest is not None and manifest.outcome == "done":
        # Nothing continues from here: the kernel has left its checkpoints out.
        step = max((row["step"] for row in run.rows(run.events)), default=step)
    if manifest is None:
        # The session had no time to sign off; what it saved can be continued.
        stopped = status in (FinalStatus.CANCELLED, FinalStatus.TIMED_OUT)
        outcome: PushOutcome = status.text if stopped else "killed"
        return KaggleResult(outcome, max(1, status.value), step, progress)
    if manifest.outcome == "paused":
        return KaggleResult("paused", FinalStatus.TIMED_OUT.value, step, progress)
    code = manifest.exit_code if manifest.exit_code in (0, 2) else 1
    return KaggleResult(manifest.outcome, code, step, progress)
