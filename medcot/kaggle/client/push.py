"""Push a built kernel: the one step that spends quota and cannot be taken back."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import KernelOnKaggle, SaveAnswer
from medcot.kaggle.client.build import Kernel
from medcot.kaggle.client.bundle import (
    MARKER,
    Orders,
    read_script,
    refuse_leaks,
    scan,
    unpack,
)
from medcot.kaggle.client.metadata import check_metadata
from medcot.kaggle.client.push_state import Push, answered, intend, read_pushes
from medcot.kaggle.client.retry import Refused, retry_after
from medcot.kaggle.session.secret_scan import known_secrets
from medcot.kaggle.session.subprocesses import Say
from medcot.runs.directory import RunDirectory

RUNNING = ("QUEUED", "RUNNING", "CANCEL_REQUESTED", "NEW_SCRIPT")
SHORTEST_H = 0.25
"""With less quota than this a session would end before it has trained anything."""

TRIES = 5


def push(
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    say: Say,
    *,
    public: bool = False,
    again: bool = False,
) -> Push:
    """Send ``kernel`` as a new version, once; a version that is there already is taken over.

    Args:
        public: whether the metadata may say so.
        again: push this very bundle although a version of it was pushed before.

    Raises:
        InputError: credentials, names, privacy or a secret in what would leave.
        RunFailed: no quota, a session still running, or Kaggle's own refusal.
    """
    check_folder(kernel, public)
    check_quota(account, kernel, say)
    existing = account.kernel(kernel.ref)
    if taken := _taken_over(kernel, run, existing, again):
        say(f"version {taken.version} of {taken.ref} holds this very bundle: not pushed again")
        return taken
    _check_existing(account, kernel, existing)
    _check_datasets(account, kernel)
    if kernel.dataset is not None:
        ref = kernel.metadata["dataset_sources"][0]
        say(f"uploading the bundle as the private data set {ref}")
        _upload(account, kernel.dataset, ref)
    intention = intend(run, kernel)
    answer = _send(account, kernel, existing)
    sent = answered(run, intention, answer.version, answer.url)
    _read(answer, kernel)
    if existing is None:
        say(how_to_attach_secrets(kernel.ref, kernel.orders))
    say(f"version {sent.version} of {kernel.ref} is running: {sent.url or url_of(kernel.ref)}")
    return sent


def check_folder(kernel: Kernel, public: bool = False) -> None:
    """Check what is in the folder now, whoever wrote it last.

    Raises:
        InputError: bad metadata, wrong privacy, or a secret in a file.
    """
    metadata = json.loads((kernel.folder / "kernel-metadata.json").read_text(encoding="utf-8"))
    check_metadata(metadata, public=public)
    folders = [kernel.folder, *([kernel.dataset] if kernel.dataset else [])]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.name: path.read_bytes() for path in paths}
    carried = read_script(files["kernel.py"].decode())
    for name in [name for name in files if name.endswith(".bundle")]:
        carried |= unpack(files.pop(name))
    refuse_leaks(scan(files | carried, known_secrets()))


def check_quota(account: Account, kernel: Kernel, say: Say) -> None:
    """Raises:
    InputError: Kaggle does not take the credentials.
    RunFailed: no GPU hours are left this week.
    """
    quota = account.quota()
    if not kernel.metadata["enable_gpu"]:
        return
    if quota is None:
        say("GPU quota: Kaggle names none for this account")
        return
    say(f"GPU quota: {quota.left_h:.1f} of {quota.allowed_h:.0f} hours left this week")
    if quota.left_h < SHORTEST_H:
        when = f" on {quota.refresh:%A %d %B, %H:%M} UTC" if quota.refresh else " within a week"
        raise RunFailed(
            "push",
            f"{quota.left_h:.1f} of {quota.allowed_h:.0f} GPU hours are left.",
            f"The quota is renewed{when}; nothing was pushed, and finished work is kept.",
        )
    if quota.reserved_h:
        say(f"another GPU session is running ({quota.reserved_h:.1f} hours reserved)")


def how_to_attach_secrets(ref: str, orders: Orders) -> str:
    """The boxes to tick, by the labels that ``orders`` look for. No API can tick them."""
    hub, wandb = orders.hub_labels[0], orders.wandb_labels[0]
    return (
        f"To give the kernel its secrets, once: open {url_of(ref)}/edit, Add-ons > Secrets, and "
        f"tick {hub} (private models, uploads) and {wandb} (live W&B). "
        "Without them the run goes on with public models and W&B offline."
    )


def url_of(ref: str) -> str:
    return f"https://www.kaggle.com/code/{ref}"


def _taken_over(
    kernel: Kernel,
    run: RunDirectory,
    existing: KernelOnKaggle | None,
    again: bool,
) -> Push | None:
    """The version of this very bundle that is on Kaggle already, if it is not to be repeated."""
    known = [push for push in read_pushes(run) if push.checksum == kernel.checksum]
    sent = [push for push in known if push.version]
    if existing and holds(existing.source, kernel.checksum):
        unanswered = next((push for push in known if not push.version), None)
        if unanswered or not again:
            intention = unanswered or (sent[-1] if sent else intend(run, kernel))
            return answered(run, intention, existing.version, url_of(kernel.ref))
    if sent and not again:
        raise InputError(
            "push",
            f"this bundle was already pushed as version {sent[-1].version}",
            "wait for and fetch that version, or use --again to spend quota on the same run twice",
        )
    return None


def holds(source: str, checksum: str) -> bool:
    """Whether a kernel's source is that of the bundle ``checksum``."""
    return f'\nBUNDLE = "{checksum}"' in source


def _check_existing(account: Account, kernel: Kernel, existing: KernelOnKaggle | None) -> None:
    if existing is None:
        return
    if MARKER not in existing.source:
        raise InputError(
            "--title",
            f"{kernel.ref} is a kernel of yours that medcot did not make",
            "use another title, so that it is not overwritten",
        )
    status = account.status(kernel.ref, existing.version)
    if status is not None and status.word in RUNNING:
        raise RunFailed(
            "push",
            f"version {existing.version} of {kernel.ref} is {status.word.lower()}.",
            f"Wait for it, or cancel it at {url_of(kernel.ref)}, or use another --title.",
        )


def _check_datasets(account: Account, kernel: Kernel) -> None:
    own = kernel.metadata["dataset_sources"][0] if kernel.dataset else ""
    for ref in kernel.metadata["dataset_sources"]:
        if ref == own:
            continue
        private = account.is_private_dataset(ref)
        if private is not True:
            got = f"{ref} is public" if private is False else f"{ref} does not exist"
            raise InputError("--secrets-dataset", got, "use a private data set of yours")


def _upload(account: Account, folder: Path, ref: str) -> None:
    try:
        account.upload_dataset(folder, ref)
    except Refused as error:
        raise RunFailed(
            "push", f"Kaggle refused the data set {ref} ({error.message}).", "Nothing was pushed."
        ) from None


def _send(account: Account, kernel: Kernel, existing: KernelOnKaggle | None) -> SaveAnswer:
    """Save once. Where the answer was lost, look whether it arrived before sending again."""
    from requests.exceptions import HTTPError, RequestException

    delay = account.patience.first
    reason = ""
    for _ in range(TRIES):
        try:
            return account.save(kernel.folder, kernel.orders.limit_s)
        except HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 409:
                raise _name_taken(kernel) from None
            if status != 429 and status < 500:
                raise RunFailed(
                    "push",
                    f"Kaggle refused it (HTTP {status}: {error}).",
                    "The credentials work, so it is this kernel: its title may be taken, or the "
                    "account lacks a verified phone number, which Internet and GPU need.",
                ) from None
            reason, delay = f"HTTP {status}", retry_after(error.response) or delay
        except RequestException as error:
            reason = type(error).__name__
        account.patience.sleep(delay)
        delay = min(2 * delay, account.patience.longest)
        now = account.kernel(kernel.ref)
        if now and holds(now.source, kernel.checksum):
            fresh = existing is None or now.version > existing.version
            if fresh:
                return SaveAnswer(kernel.ref, url_of(kernel.ref), now.version, "", {})
    raise RunFailed(
        "push", f"Kaggle did not accept it in {TRIES} tries ({reason}).", "Push again later."
    )


def _read(answer: SaveAnswer, kernel: Kernel) -> None:
    """Read every field of the answer: a 200 with an ``error`` is a refusal like any other."""
    if answer.error:
        if re.search(r"(?i)already in use|already exists|title .* taken", answer.error):
            raise _name_taken(kernel)
        if re.search(r"(?i)session count|concurrent", answer.error):
            remedy = "Wait for a running GPU session to end, or cancel one, and push again."
        elif re.search(r"(?i)quota|hours", answer.error):
            remedy = "Wait for the weekly quota to be renewed; everything is kept."
        else:
            remedy = "Nothing was started."
        raise RunFailed("push", f"Kaggle says: {answer.error.rstrip('.')}.", remedy)
    for kind, names in answer.invalid.items():
        if names and kind != "tags":
            raise RunFailed(
                "push",
                f"Kaggle did not accept as {kind.replace('_', ' ')}: {', '.join(names)}.",
                f"Version {answer.version} was started without: cancel it at {url_of(kernel.ref)}.",
            )
    if not answer.version:
        raise RunFailed(
            "push", "Kaggle's answer names no version.", f"Look at {url_of(kernel.ref)}."
        )


def _name_taken(kernel: Kernel) -> InputError:
    return InputError("--title", f"{kernel.metadata['title']!r} is taken", "use another title")
