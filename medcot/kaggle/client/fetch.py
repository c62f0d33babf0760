"""Fetch a session's output: every file checked, all or nothing, only into the run directory."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medcot.credentials import Redactor, known_secrets
from medcot.errors import RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import OutputFile
from medcot.kaggle.client.build import FOLDER
from medcot.kaggle.client.connection import CONNECT_S, READ_S
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.retry import RequestRefused, RetryPolicy, call_with_retries
from medcot.kaggle.session.manifest import NAME, STAMP, FileEntry, Manifest, read_manifest, sha256
from medcot.kaggle.session.subprocesses import Say
from medcot.runs.directory import RunDirectory

_CHUNK = 1 << 16
"""Bytes: the most that a cut connection loses."""

_PLACES = {NAME: f"{FOLDER}/{NAME}", STAMP: f"{FOLDER}/{STAMP}"}
_TOP = ("tutorial.html", "error.json")


@dataclass(frozen=True, slots=True)
class FetchedOutput:
    """The fetched files. ``manifest`` is None if the session was killed before it wrote one."""

    files: tuple[str, ...]
    manifest: Manifest | None


def fetch(account: Account, push: PushRecord, run: RunDirectory, say: Say) -> FetchedOutput:
    """Download the output of ``push`` into ``run``, except for files that are already there.

    Files arrive in ``kaggle/incoming`` and move to their places once all are checked. The run's
    own ``config.json`` stays as it is.

    Raises:
        RunFailed: a name that leads out of the run directory, a wrong checksum, the output of
            another bundle, or a failed download. Nothing in the run directory was changed.
    """
    files, log = account.outputs(push.ref, push.version)
    places = {file.name: place_of(file.name) for file in files}
    incoming = run.path / FOLDER / "incoming" / f"v{push.version}"
    manifest = _read_manifest(account, files, incoming, push)
    _check_complete(files, manifest)
    for file in files:
        known = manifest.files.get(file.name) if manifest else None
        _download_checked(
            file, incoming / file.name, run.path / places[file.name], known, account.policy
        )
    moved = _move_to_places(incoming, run.path, places)
    if log:
        run.write_text(f"{FOLDER}/v{push.version}.log", Redactor(known_secrets())(log))
    say(f"fetched {len(files)} files of version {push.version} into {run.path}")
    return FetchedOutput(tuple(moved), manifest)


def place_of(name: str) -> str:
    """Return where in the run directory the output file ``name`` belongs.

    Raises:
        RunFailed: the name is absolute, contains ``..``, or is not in its normal form.
    """
    path = PurePosixPath(name)
    bad = (
        not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or re.search(r"[\x00-\x1f\\:]", name)
        or path.as_posix() != name
    )
    if bad:
        raise RunFailed(
            "fetch",
            f"the output holds a file named {name[:80]!r}, which leads out of the run directory.",
            "Nothing was written; look at the version's output on Kaggle.",
        )
    if name in _PLACES:
        return _PLACES[name]
    if path.parts[0] == "run" and len(path.parts) > 1:
        inside = "/".join(path.parts[1:])
        return f"{FOLDER}/output/{name}" if path.parts[1] == FOLDER else inside
    return name if name in _TOP else f"{FOLDER}/output/{name}"


def _read_manifest(
    account: Account, files: Sequence[OutputFile], incoming: Path, push: PushRecord
) -> Manifest | None:
    listed = next((file for file in files if file.name == NAME), None)
    if listed is None:
        return None
    target = incoming / NAME
    target.unlink(missing_ok=True)
    _download(listed, target, None, account.policy)
    try:
        manifest = read_manifest(target.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFailed("fetch", f"{NAME} is damaged ({error}).", "Fetch again.") from None
    if manifest.bundle != push.checksum:
        raise RunFailed(
            "fetch",
            f"the output of version {push.version} belongs to another bundle.",
            "Nothing was written; push this run again, or fetch from its own run directory.",
        )
    return manifest


def _check_complete(files: Sequence[OutputFile], manifest: Manifest | None) -> None:
    listed = {file.name for file in files}
    absent = sorted(set(manifest.files) - listed) if manifest else []
    if absent:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise RunFailed(
            "fetch",
            f"Kaggle does not list {absent[0]}{more}.",
            "Its list may be out of date; fetch again in a minute.",
        )


def _download_checked(
    file: OutputFile, target: Path, final: Path, known: FileEntry | None, policy: RetryPolicy
) -> None:
    """Download ``file`` to ``target`` unless it is already there or at its final place."""
    size = known.size if known else None
    if known and any(_is_intact(path, known) for path in (target, final)):
        return
    for _ in range(2):
        _download(file, target, size, policy)
        if known is None or sha256(target) == known.sha256:
            return
        target.unlink()
    raise RunFailed(
        "fetch", f"{file.name} arrived twice with a wrong checksum.", "Fetch again later."
    )


def _is_intact(path: Path, known: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == known.size and sha256(path) == known.sha256


def _download(file: OutputFile, target: Path, size: int | None, policy: RetryPolicy) -> None:
    """Download ``file`` to ``target``, continuing a part that is already there."""
    import requests

    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if size is not None and part.exists() and part.stat().st_size > size:
        part.unlink()

    def load() -> None:
        have = part.stat().st_size if part.exists() else 0
        if size is not None and have == size and have:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        # The address is signed and leads to a storage host, which must not get the credentials.
        with requests.get(
            file.url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)
        ) as answer:
            if answer.status_code == 416:
                part.unlink()
                raise requests.exceptions.ConnectionError("the part did not fit; from the start")
            answer.raise_for_status()
            with part.open("ab" if answer.status_code == 206 else "wb") as out:
                for chunk in answer.iter_content(_CHUNK):
                    out.write(chunk)
        if size is not None and part.stat().st_size != size:
            raise requests.exceptions.ConnectionError("the connection ended early")

    try:
        call_with_retries(load, policy, file.name)
    except RequestRefused as error:
        raise RunFailed(
            "fetch", f"{file.name} could not be downloaded ({error}).", "Fetch again."
        ) from None
    part.replace(target)


def _move_to_places(incoming: Path, home: Path, places: dict[str, str]) -> list[str]:
    """Move everything to its place. Keep the run's own config, and drop an older error."""
    moved = []
    if "error.json" not in places.values():
        (home / "error.json").unlink(missing_ok=True)
    for name, place in places.items():
        source, target = incoming / name, home / place
        if place == "config.json" and target.exists():
            continue
        if source.exists():
            if not target.parent.resolve().is_relative_to(home.resolve()):
                raise RunFailed("fetch", f"{place} leads out of {home}.", "Remove the link there.")
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        moved.append(place)
    shutil.rmtree(incoming, ignore_errors=True)
    return moved
