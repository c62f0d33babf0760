"""Push a built kernel: the only step that spends quota and cannot be undone."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medcot.credentials import known_secrets
from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import RemoteKernel, SaveAnswer
from medcot.kaggle.client.build import Kernel
from medcot.kaggle.client.bundle import (
    MARKER,
    checksum_of,
    read_script,
    refuse_secrets,
    scan_files,
    unpack,
)
from medcot.kaggle.client.metadata import check_metadata
from medcot.kaggle.client.push_state import PushRecord, read_pushes, record_answer, record_intent
from medcot.kaggle.client.retry import RequestRefused, retry_after
from medcot.kaggle.session.job import JobSpec
from medcot.kaggle.session.subprocesses import Say
from medcot.runs.directory import RunDirectory

RUNNING = ("QUEUED", "RUNNING", "CANCEL_REQUESTED", "NEW_SCRIPT")
SHORTEST_H = 0.25
"""GPU hours: with less quota a session would end before it has trained anything."""

TRIES = 5


def push(
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    say: Say,
    *,
    public: bool = False,
    again: bool = False,
) -> PushRecord:
    """Send ``kernel`` as a new version, once; adopt a version of this bundle that is there already.

    Args:
        public: allow a public kernel.
        again: push this bundle although a version of it was pushed before.

    Raises:
        InputError: credentials, names, privacy, or a secret in what would be sent.
        RunFailed: no quota, a session still running, or Kaggle's own refusal.
    """
    check_folder(kernel, public=public)
    check_quota(account, kernel, say)
    existing = account.kernel(kernel.ref)
    if adopted := _adopt_version(kernel, run, existing, again=again):
        say(f"version {adopted.version} of {adopted.ref} holds this bundle: not pushed again")
        return adopted
    _check_existing(account, kernel, existing)
    _check_datasets(account, kernel)
    if kernel.dataset is not None:
        ref = kernel.metadata["dataset_sources"][0]
        say(f"uploading the bundle as the private data set {ref}")
        _upload(account, kernel.dataset, ref)
    intention = record_intent(run, kernel)
    answer = _send(account, kernel, existing)
    sent = record_answer(run, intention, answer.version, answer.url)
    _check_answer(answer, kernel)
    if existing is None:
        say(describe_secret_setup(kernel.ref, kernel.job))
    say(f"version {sent.version} of {kernel.ref} is running: {sent.url or url_of(kernel.ref)}")
    return sent


def check_folder(kernel: Kernel, *, public: bool = False) -> None:
    """Check the folder as it is now, since it may have changed after the build.

    Raises:
        InputError: bad metadata, wrong privacy, or a secret in a file.
    """
    metadata = json.loads((kernel.folder / "kernel-metadata.json").read_text(encoding="utf-8"))
    check_metadata(metadata, public=public)
    folders = [kernel.folder, *([kernel.dataset] if kernel.dataset else [])]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.name: path.read_bytes() for path in paths}
    carried = read_script(files[metadata["code_file"]].decode())
    for name in [name for name in files if name.endswith(".bundle")]:
        carried |= unpack(files.pop(name))
    refuse_secrets(scan_files(files | carried, known_secrets()))


def check_quota(account: Account, kernel: Kernel, say: Say) -> None:
    """Ask for the GPU quota and report it.

    Raises:
        InputError: Kaggle refuses the credentials.
        RunFailed: the kernel needs a GPU and no hours are left this week.
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


def describe_secret_setup(ref: str, job: JobSpec) -> str:
    """Say how to attach the secrets that ``job`` looks for. Kaggle's API cannot attach them."""
    hub, wandb = job.hub_labels[0], job.wandb_labels[0]
    return (
        f"To give the kernel its secrets, once: open {url_of(ref)}/edit, Add-ons > Secrets, and "
        f"tick {hub} (private models, uploads) and {wandb} (live W&B). "
        "Without them the run uses public models and keeps W&B offline."
    )


def url_of(ref: str) -> str:
    """Return the address of the kernel ``ref``."""
    return f"https://www.kaggle.com/code/{ref}"


def _adopt_version(
    kernel: Kernel, run: RunDirectory, existing: RemoteKernel | None, *, again: bool
) -> PushRecord | None:
    """Return the version of this bundle that is already on Kaggle, unless it is to be repeated."""
    known = [push for push in read_pushes(run) if push.checksum == kernel.checksum]
    sent = [push for push in known if push.version]
    if existing and checksum_of(existing.source) == kernel.checksum:
        unanswered = next((push for push in known if not push.version), None)
        if unanswered or not again:
            intention = unanswered or (sent[-1] if sent else record_intent(run, kernel))
            return record_answer(run, intention, existing.version, url_of(kernel.ref))
    if sent and not again:
        raise InputError(
            "push",
            f"this bundle was already pushed as version {sent[-1].version}",
            "wait for and fetch that version, or use --again to spend quota on the same run twice",
        )
    return None


def _check_existing(account: Account, kernel: Kernel, existing: RemoteKernel | None) -> None:
    if existing is None:
        return
    if MARKER not in existing.source:
        raise InputError(
            "--title",
            f"{kernel.ref} is a kernel of yours that medcot did not make",
            "use another title, so that it is not overwritten",
        )
    status = account.status(kernel.ref, existing.version)
    if status is not None and status.state in RUNNING:
        raise RunFailed(
            "push",
            f"version {existing.version} of {kernel.ref} is {status.state.lower()}.",
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
    except RequestRefused as error:
        raise RunFailed(
            "push", f"Kaggle refused the data set {ref} ({error.message}).", "Nothing was pushed."
        ) from None


def _send(account: Account, kernel: Kernel, existing: RemoteKernel | None) -> SaveAnswer:
    """Send once. If the answer is lost, look whether the push arrived before sending it again."""
    from requests.exceptions import HTTPError, RequestException

    delay = account.policy.first_delay_s
    reason = ""
    for _ in range(TRIES):
        try:
            return account.save(kernel.folder, kernel.job.limit_s)
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
        account.policy.sleep(delay)
        delay = min(2 * delay, account.policy.longest_delay_s)
        now = account.kernel(kernel.ref)
        if now and checksum_of(now.source) == kernel.checksum:
            fresh = existing is None or now.version > existing.version
            if fresh:
                return SaveAnswer(kernel.ref, url_of(kernel.ref), now.version, "", {})
    raise RunFailed(
        "push", f"Kaggle did not accept it in {TRIES} tries ({reason}).", "Push again later."
    )


def _check_answer(answer: SaveAnswer, kernel: Kernel) -> None:
    """Check every field of the answer: Kaggle reports errors with HTTP status 200, too."""
    if answer.error:
        if re.search(r"(?i)already in use|already exists|title .* taken", answer.error):
            raise _name_taken(kernel)
        if re.search(r"(?i)session count|concurrent", answer.error):
            remedy = "Wait for a running GPU session to end, or cancel one, and push again."
        elif re.search(r"(?i)quota|hours", answer.error):
            remedy = "Wait until the weekly quota is renewed; finished work is kept."
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
