"""Take over a kernel that was pushed, or whose output was fetched, with Kaggle's own client.

``build`` prints the commands. The bundle's checksum, which the source and the output carry, tells
which version and which files belong to a run directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medcot.errors import InputError
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.build import FOLDER, KERNEL_FOLDER
from medcot.kaggle.client.bundle import checksum_of, read_script
from medcot.kaggle.client.fetch import take_downloaded
from medcot.kaggle.client.metadata import CODE_FILES
from medcot.kaggle.client.push import url_of
from medcot.kaggle.client.push_state import PushRecord, last_push, save_push, training_pushes
from medcot.kaggle.session.job import JOB_FILE, JobSpec, read_job
from medcot.kaggle.session.manifest import NAME as MANIFEST
from medcot.kaggle.session.subprocesses import Say
from medcot.runs.directory import RunDirectory

DOWNLOADED = f"{FOLDER}/downloaded"
"""The folder of a run directory into which `build` has the plain client fetch the output."""
_VERSIONS = 20
"""How many of a kernel's newest versions are looked at."""


@dataclass(frozen=True, slots=True)
class KernelFolder:
    """The kernel folder of a run directory, as `build` left it."""

    ref: str
    checksum: str
    job: JobSpec


def read_built_kernel(run: RunDirectory) -> KernelFolder | None:
    """Return the kernel that was built in ``run``, or None.

    Raises:
        InputError: its source was changed.
    """
    folder = run.path / KERNEL_FOLDER
    paths = [folder / name for name in CODE_FILES.values() if (folder / name).is_file()]
    if not paths or not (folder / "kernel-metadata.json").is_file():
        return None
    source = paths[0].read_text(encoding="utf-8")
    job = read_job(read_script(source)[JOB_FILE].decode())
    metadata = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))
    return KernelFolder(str(metadata["id"]), checksum_of(source), job)


def plain_commands(run: RunDirectory, ref: str) -> list[str]:
    """Return the commands of Kaggle's own client that push, watch and fetch ``run``'s kernel."""
    return [
        f"kaggle kernels push -p {run.path / KERNEL_FOLDER}",
        f"kaggle kernels status {ref}",
        f"kaggle kernels output {ref} -p {run.path / DOWNLOADED}",
    ]


def find_push(account: Account, run: RunDirectory, say: Say) -> PushRecord:
    """Return the newest push of ``run``, recorded here or made with Kaggle's own client.

    Raises:
        InputError: nothing was pushed, as far as Kaggle and this run directory know.
    """
    kernel = read_built_kernel(run)
    recorded = [push.checksum for push in training_pushes(run)]
    if kernel is None or kernel.job.task != "run" or kernel.checksum in recorded:
        return last_push(run)
    version = _find_version(account, kernel)
    if version:
        say(f"version {version} of {kernel.ref} holds this run: taken over")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        session, url = kernel.job.session, url_of(kernel.ref)
        return save_push(run, PushRecord(kernel.ref, kernel.checksum, session, now, version, url))
    if recorded:
        return last_push(run)
    raise InputError(
        f"--out {run.path}",
        f"no version of {kernel.ref} holds this run",
        f"push it: {plain_commands(run, kernel.ref)[0]}",
    )


def _find_version(account: Account, kernel: KernelFolder) -> int:
    """Return the newest version that carries the kernel's bundle, or 0."""
    newest = account.kernel(kernel.ref)
    if newest is None:
        return 0
    if checksum_of(newest.source) == kernel.checksum:
        return newest.version
    for version in range(newest.version - 1, max(0, newest.version - _VERSIONS), -1):
        older = account.kernel(kernel.ref, version)
        if older is not None and checksum_of(older.source) == kernel.checksum:
            return version
    return 0


def find_downloaded(run: RunDirectory) -> Path | None:
    """Return the folder into which Kaggle's own client has fetched the output of ``run``."""
    folder = run.path / DOWNLOADED
    return folder if (folder / MANIFEST).is_file() else None


def take_output(run: RunDirectory, folder: Path, say: Say) -> None:
    """Move an output that Kaggle's own client has fetched to its places in ``run``.

    Raises:
        InputError: no kernel was built in ``run``, or its source was changed.
        RunFailed: the output of another run, or files that are missing or damaged.
    """
    kernel = read_built_kernel(run)
    if kernel is None:
        raise InputError(f"--run {run.path}", "no kernel was built in it", "build it first")
    count = take_downloaded(folder, kernel.checksum, run)
    say(f"took over {count} files from {folder}")
