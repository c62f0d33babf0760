"""The whole way to Kaggle and back: build, push, wait, fetch; once, or until the run is done."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from medcot.config.schema import RunConfig
from medcot.credentials import has_wandb_login
from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.account import Account, connect
from medcot.kaggle.client.build import FOLDER, Wishes, build
from medcot.kaggle.client.fetch import Fetched, fetch
from medcot.kaggle.client.push import how_to_attach_secrets, push
from medcot.kaggle.client.push_state import Push, record, runs_pushed
from medcot.kaggle.client.wait import Ending, wait
from medcot.kaggle.session.secret_scan import Redactor, known_secrets
from medcot.kaggle.session.subprocesses import Say, run_command
from medcot.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Finish:
    """How one session ended for its run: done, paused, failed, killed, cancelled or timed out.

    ``exit_code`` is that of ``push.py run``: the run's own 1 or 2, 3 cancelled, 4 out of time.
    ``progress`` counts the training steps and scored rows that came home.
    """

    outcome: str
    exit_code: int
    step: int
    progress: int


def run_on_kaggle(
    account: Account,
    config: RunConfig,
    run: RunDirectory,
    wishes: Wishes,
    say: Say,
    show: Say | None = None,
    *,
    until_done: bool = False,
    again: bool = False,
    interval: float = 20.0,
) -> Finish:
    """Build, push, wait and fetch; with ``until_done`` go on in new sessions until it is done.

    Called again for the same run directory it takes up where it was: a version that still runs is
    waited for, a paused run is continued. A run that failed is tried again only with ``again``.

    Raises:
        InputError, RunFailed: as the parts; or a session brought the run no step further.
    """
    while True:
        sent = _to_bring_home(run, say, again)
        sent = sent or _send_next(account, config, run, wishes, say, again)
        finish = bring_home(account, sent, run, say, show, interval=interval)
        if not until_done or finish.outcome in _ENDS:
            return finish
        if finish.progress <= _progress_before(run, sent):
            raise RunFailed(
                "run",
                f"session {sent.session} ended ({finish.outcome}) without progress.",
                f"Look at its log, {run.path / FOLDER / f'v{sent.version}.log'}.",
            )
        again = False
        say(f"session {sent.session} ended at step {finish.step} ({finish.outcome}); going on")


def bring_home(
    account: Account,
    sent: Push,
    run: RunDirectory,
    say: Say,
    show: Say | None = None,
    *,
    interval: float = 20.0,
) -> Finish:
    """Wait for ``sent`` and fetch what it left; what became of it is kept in the run directory."""
    ending, message = wait(account, sent, say, show, interval=interval)
    if message:
        say(f"Kaggle says: {message}")
    return take(account, sent, run, say, ending)


def take(account: Account, sent: Push, run: RunDirectory, say: Say, ending: Ending) -> Finish:
    """Fetch the output of the ended session ``sent``, and say how the run stands."""
    fetched = _fetch_listed(account, sent, run, say, ending)
    for note in fetched.manifest.notes if fetched.manifest else ():
        say(note)
    finish = _judge(fetched, ending, run)
    record(run, replace(sent, outcome=finish.outcome, progress=finish.progress))
    if finish.outcome == "failed" and run.has("error.json"):
        error = run.read_json("error.json")
        say(f"{error['stage']}: {error['message']} {error.get('remedy', '')}".rstrip())
    sync_wandb(run, say)
    return finish


def probe_secrets(
    account: Account,
    run: RunDirectory,
    config: RunConfig,
    wishes: Wishes,
    say: Say,
    interval: float = 10.0,
) -> list[str]:
    """Ask the kernel itself which secrets it is given: a CPU session of about a minute, no GPU.

    Secrets belong to a kernel, so the probe is a version of the kernel that trains later.
    """
    orders = replace(wishes.orders, task="secrets")
    asked = replace(wishes, gpu=False, limit_s=600, margin_s=60, orders=orders)
    kernel = build(config, run, account.user, asked)
    sent = push(account, kernel, run, say, public=wishes.public, again=True)
    ending, message = wait(account, sent, say, interval=interval)
    fetched = fetch(account, sent, run, say)
    record(run, replace(sent, outcome=ending.name.lower()))
    if ending is not Ending.DONE or fetched.manifest is None:
        raise RunFailed("secrets", f"the probe ended as {ending.name.lower()}. {message}", "")
    missing = [line for line in fetched.manifest.notes if ": ok (" not in line]
    if missing and sent.version > 1:  # the first push has said so
        say(how_to_attach_secrets(sent.ref, orders))
    return list(fetched.manifest.notes)


def sync_wandb(run: RunDirectory, say: Say) -> None:
    """Send W&B runs that were kept offline, if this machine has a W&B login; else say how."""
    redact = Redactor(known_secrets())

    def hidden(line: str) -> None:
        say(redact(line))

    offline = sorted((run.path / "wandb").glob("offline-run-*"))
    for path in offline:
        if (path / "synced").exists() or list(path.glob("*.synced")):
            continue
        if not has_wandb_login():
            say(f"W&B was offline; to send it: wandb sync {path}")
            continue
        if run_command([sys.executable, "-m", "wandb", "sync", str(path)], hidden).code:
            say(f"W&B could not be synced; try again: wandb sync {path}")


@dataclass(frozen=True, slots=True)
class AccountCheck:
    """What ``medcot doctor`` and the notebook say of the Kaggle account, in one line."""

    ready: bool
    line: str


def check_account() -> AccountCheck:
    """Whether a push could be made from here. Never raises; needs the network to say yes."""
    from medcot.kaggle.client.retry import Patience

    try:
        account = connect(Patience(seconds=5.0))
        quota = account.quota()
    except (InputError, RunFailed) as error:
        return AccountCheck(False, str(error))
    if quota is None:
        return AccountCheck(True, f"signed in as {account.user}; Kaggle names no GPU quota")
    hours = f"{quota.left_h:.1f} of {quota.allowed_h:.0f} GPU hours left this week"
    return AccountCheck(quota.left_h > 0, f"signed in as {account.user}, {hours}")


_LISTINGS, _LISTING_S = 10, 10.0
_GOES_ON = ("paused", "killed", "cancelled", "timed out")
_ENDS = ("done", "failed", "cancelled")
"""What even ``until_done`` does not go on from by itself; a person cancelled for a reason."""


def _send_next(
    account: Account,
    config: RunConfig,
    run: RunDirectory,
    wishes: Wishes,
    say: Say,
    again: bool,
) -> Push:
    last = next(reversed(runs_pushed(run)), None)
    goes_on = last and (last.outcome in _GOES_ON or (again and last.progress))
    orders = wishes.orders
    if last and goes_on:
        orders = replace(orders, session=last.session + 1, previous=last.ref)
    kernel = build(config, run, account.user, replace(wishes, orders=orders))
    return push(account, kernel, run, say, public=wishes.public, again=again)


def _fetch_listed(
    account: Account, sent: Push, run: RunDirectory, say: Say, ending: Ending
) -> Fetched:
    """Fetch; a session that ended well wrote a manifest, so its list may be a little behind."""
    for _ in range(_LISTINGS):
        fetched = fetch(account, sent, run, say)
        if fetched.manifest is not None or ending is not Ending.DONE:
            return fetched
        account.patience.sleep(_LISTING_S)
    raise RunFailed(
        "fetch", f"Kaggle does not list version {sent.version}'s output yet.", "Fetch again later."
    )


def _to_bring_home(run: RunDirectory, say: Say, again: bool) -> Push | None:
    """The push whose end nobody has seen yet, or that ended the run; None where one is to be made.

    A run that is over is over, even if the project was changed since and its bundle is another.
    """
    last = next(reversed(runs_pushed(run)), None)
    if last is None or (last.outcome in _GOES_ON) or (last.outcome and again):
        return None
    if last.outcome:
        say(f"version {last.version} of {last.ref} has ended this run ({last.outcome}): "
            "not pushed again, --again does that")  # fmt: skip
    return last


def _progress_before(run: RunDirectory, sent: Push) -> int:
    earlier = [old.progress for old in runs_pushed(run) if old.version < sent.version]
    return max(earlier, default=0)


def _judge(fetched: Fetched, ending: Ending, run: RunDirectory) -> Finish:
    checkpoint = run.last_checkpoint()
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    scored = [len(list(run.rows(run.evaluation(phase)))) for phase in ("before", "after")]
    progress = step + sum(scored)
    manifest = fetched.manifest
    if manifest is None:
        # The session had no time to sign off: what it saved can be continued.
        words = {Ending.CANCELLED: "cancelled", Ending.TIMED_OUT: "timed out"}
        return Finish(words.get(ending, "killed"), max(1, ending.value), step, progress)
    if manifest.outcome == "paused":
        return Finish("paused", Ending.TIMED_OUT.value, step, progress)
    code = manifest.exit_code if manifest.exit_code in (0, 2) else 1
    return Finish(manifest.outcome, code, step, progress)
