"""Fetch a session's output: every file checked, all or nothing, only into the run directory."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medcot.credentials import Redactor, known_secrets
from medcot.errors import RunFailed, one_line
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.api_types import OutputFile
from medcot.kaggle.client.build import FOLDER
from medcot.kaggle.client.connection import CONNECT_S, READ_S
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.retry import RequestRefused, RetryPolicy, call_with_retries
from medcot.kaggle.session.manifest import NAME, STAMP, FileEntry, Manifest, read_manifest, sha256
from medcot.kaggle.session.subprocesses import Say
from medcot.runs.directory import RunDirectory
from medcot.runs.lock import LOCK_FILE

_CHUNK = 1 << 16
"""Bytes: the most that a cut connection loses."""
_LONGEST_PART, _LONGEST_NAME = 240, 1000
"""Bytes of a file's name and of its whole path, which file systems take with ``.part`` added."""
_LARGEST_MANIFEST = 64 << 20
"""Bytes; each file of the output takes about 150."""
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""

_PLACES = {NAME: f"{FOLDER}/{NAME}", STAMP: f"{FOLDER}/{STAMP}"}
_TOP = ("tutorial.html", "report.html", "error.json")


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
        InputError: Another process works on the run.
        RunFailed: a name that leads out of the run directory or cannot be written, a wrong
            checksum, the output of another bundle, a failed download, or a file that cannot be
            written. Nothing in the run directory was changed.
    """
    files, log = account.outputs(push.ref, push.version)
    places = {file.name: place_of(file.name) for file in files}
    _check_names(files, places)
    held = run.lock.held
    if run.path.is_dir():
        run.lock.take()
    try:
        moved, manifest = _fetch_into(account, push, run, files, places)
        if log:
            text = Redactor(known_secrets())(log).encode(errors="backslashreplace").decode()
            run.write_text(f"{FOLDER}/v{push.version}.log", text)
    except OSError as error:
        raise RunFailed(
            "fetch",
            f"{run.path} cannot be written to ({one_line(error.strerror or str(error))}).",
            "Mend that and fetch again: what has arrived is kept.",
        ) from None
    finally:
        if not held:
            run.lock.release()
    say(f"fetched {len(files)} files of version {push.version} into {run.path}")
    return FetchedOutput(tuple(moved), manifest)


def _fetch_into(
    account: Account,
    push: PushRecord,
    run: RunDirectory,
    files: Sequence[OutputFile],
    places: dict[str, str],
) -> tuple[list[str], Manifest | None]:
    """Download ``files``, check them all, and only then move them to ``places``."""
    incoming = run.path / FOLDER / "incoming" / f"v{push.version}"
    _check_places(run.path, [f"{FOLDER}/incoming/v{push.version}/{name}.part" for name in places])
    manifest = _read_manifest(account, files, incoming, push)
    _check_complete(files, manifest)
    for file in files:
        known = manifest.files.get(file.name) if manifest else None
        final = run.path / places[file.name]
        _download_checked(file, incoming / file.name, final, known, account.policy)
    _check_places(run.path, places.values())
    return _move_to_places(incoming, run.path, places), manifest


def place_of(name: str) -> str:
    """Return where in the run directory the output file ``name`` belongs.

    Raises:
        RunFailed: the name is absolute, contains ``..``, is not in its normal form, or is one
            that not every file system can hold.
    """
    path = PurePosixPath(name)
    if (
        not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or re.search(r"[\x00-\x1f\x7f-\x9f\\:]", name)
        or path.as_posix() != name
    ):
        raise _bad_output(f"a file named {name[:80]!r}, which leads out of the run directory")
    size = len(name.encode(errors="replace"))
    longest = max(len(part.encode(errors="replace")) for part in path.parts)
    if size > _LONGEST_NAME or longest > _LONGEST_PART:
        raise _bad_output(f"a file named {name[:40]!r}…, whose name is too long ({size} bytes)")
    if re.search(r"[\ud800-\udfff]", name) or any(
        _DEVICE.fullmatch(part) or part.endswith((" ", ".")) for part in path.parts
    ):
        raise _bad_output(f"a file named {name[:80]!r}, which not every file system can hold")
    if name in _PLACES:
        return _PLACES[name]
    if path.parts[0] == "run" and len(path.parts) > 1:
        inside = "/".join(path.parts[1:])
        # Neither this machine's record of pushes nor a killed session's lock is replaced.
        kept = path.parts[1].casefold() == FOLDER or path.parts[1].strip(".").startswith(LOCK_FILE)
        return f"{FOLDER}/output/{name}" if kept else inside
    if len(path.parts) == 1 and path.suffix == ".png":
        return f"figures/{name}"
    return name if name in _TOP else f"{FOLDER}/output/{name}"


def _bad_output(what: str) -> RunFailed:
    return RunFailed(
        "fetch",
        f"the output holds {what}.",
        "Nothing was written; look at the version's output on Kaggle.",
    )


def _check_names(files: Sequence[OutputFile], places: dict[str, str]) -> None:
    """Check that no two files need one name, as a file and a folder do, on any file system."""
    if len(places) < len(files):
        names = [file.name for file in files]
        twice = next(name for name in names if names.count(name) > 1)
        raise _bad_output(f"two files named {twice[:80]!r}")
    for names in (list(places), [*places.values()]):
        taken: dict[str, str] = {}
        for name in names:
            for one in (name, f"{name}.part"):
                key = unicodedata.normalize("NFC", one).casefold()
                if key in taken:
                    raise _bad_output(f"{name[:80]!r} and {taken[key][:80]!r}, which are one file")
                taken[key] = name
        for name in names:
            for folder in PurePosixPath(unicodedata.normalize("NFC", name).casefold()).parents:
                if str(folder) in taken:
                    raise _bad_output(f"{taken[str(folder)][:80]!r} as a file and as a folder")


def _check_places(home: Path, places: Iterable[str]) -> None:
    """Check that a file can be put to each place, and that no link leads it elsewhere.

    Raises:
        RunFailed: a folder is where a file goes, a file where a folder goes, or a link leads out.
    """
    root, known = home.resolve(), {home}
    for place in places:
        target = home / place
        if target.is_dir() and not target.is_symlink():
            raise RunFailed("fetch", f"{place[:80]!r} is a folder in {home}.", "Remove it.")
        folder = target.parent
        while folder not in known:
            known.add(folder)
            inside = folder.relative_to(home)
            if not folder.resolve().is_relative_to(root):
                raise RunFailed(
                    "fetch", f"{str(inside)[:80]!r} leads out of {home}.", "Remove the link there."
                )
            if folder.exists() and not folder.is_dir():
                raise RunFailed("fetch", f"{str(inside)[:80]!r} is a file in {home}.", "Remove it.")
            folder = folder.parent


def _read_manifest(
    account: Account, files: Sequence[OutputFile], incoming: Path, push: PushRecord
) -> Manifest | None:
    listed = next((file for file in files if file.name == NAME), None)
    if listed is None:
        return None
    target = incoming / NAME
    target.unlink(missing_ok=True)
    _download(listed, target, None, account.policy, most=_LARGEST_MANIFEST)
    return _parse_manifest(target, push.checksum, f"version {push.version}")


def _parse_manifest(path: Path, checksum: str, what: str) -> Manifest:
    try:
        manifest = read_manifest(path.read_text(encoding="utf-8"))
    except ValueError as error:
        why = one_line(str(error), 80)
        raise RunFailed("fetch", f"{NAME} is damaged ({why}).", "Fetch again.") from None
    if manifest.bundle != checksum:
        raise RunFailed(
            "fetch",
            f"the output of {what} belongs to another bundle.",
            "Nothing was written; push this run again, or fetch from its own run directory.",
        )
    return manifest


def take_downloaded(folder: Path, checksum: str, run: RunDirectory) -> int:
    """Move the output in ``folder``, fetched by another client, into ``run``; return its files.

    Args:
        folder: as Kaggle's own client left it; removed afterwards.
        checksum: of the bundle that the output must belong to.
        run: where the files go.

    Raises:
        InputError: Another process works on the run.
        RunFailed: the output of another bundle, or a file that is missing, damaged, or has a name
            that is refused. Nothing was moved.
    """
    manifest = _parse_manifest(folder / NAME, checksum, str(folder))
    names = [NAME, *manifest.files]
    places = {name: place_of(name) for name in names}
    _check_names([OutputFile(name, "") for name in names], places)
    for name, known in manifest.files.items():
        if not _is_intact(folder / name, known):
            raise RunFailed(
                "fetch",
                f"{_shown(name)} is missing in {folder} or damaged.",
                "Fetch it again with `kaggle kernels output --force`.",
            )
    held = run.lock.held
    run.lock.take()
    try:
        _check_places(run.path, places.values())
        return len(_move_to_places(folder, run.path, places))
    finally:
        if not held:
            run.lock.release()


def _check_complete(files: Sequence[OutputFile], manifest: Manifest | None) -> None:
    listed = {file.name for file in files}
    absent = sorted(set(manifest.files) - listed) if manifest else []
    if absent:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise RunFailed(
            "fetch",
            f"Kaggle does not list {_shown(absent[0])}{more}.",
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
        "fetch", f"{_shown(file.name)} arrived twice with a wrong checksum.", "Fetch again later."
    )


def _shown(name: str) -> str:
    """Return a name for a message: as it is if it is plain, else escaped and cut."""
    return name if name.isprintable() and len(name) <= 100 else repr(name[:80])


def _is_intact(path: Path, known: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == known.size and sha256(path) == known.sha256


def _download(
    file: OutputFile,
    target: Path,
    size: int | None,
    policy: RetryPolicy,
    most: int | None = None,
) -> None:
    """Download ``file`` to ``target``, continuing a part that is already there.

    Args:
        size: of the file in bytes, where it is known.
        most: bytes that the file may have, where its size is unknown.
    """
    import requests

    limit = most if size is None else size
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
        try:
            reply = requests.get(
                file.url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)
            )
        except (ValueError, requests.exceptions.TooManyRedirects):
            raise _bad_output(f"{_shown(file.name)}, whose address is not one") from None
        with reply as answer:
            if answer.status_code == 416:
                part.unlink(missing_ok=True)
                raise requests.exceptions.ConnectionError("the part did not fit; from the start")
            answer.raise_for_status()
            with part.open("ab" if answer.status_code == 206 else "wb") as out:
                for chunk in answer.iter_content(_CHUNK):
                    out.write(chunk)
                    if limit is not None and out.tell() > limit:
                        raise _bad_output(f"{_shown(file.name)}, which is larger than it may be")
        if size is not None and part.stat().st_size != size:
            raise requests.exceptions.ConnectionError("the connection ended early")

    try:
        call_with_retries(load, policy, file.name)
    except RequestRefused as error:
        raise RunFailed(
            "fetch", f"{_shown(file.name)} could not be downloaded ({error}).", "Fetch again."
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
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        moved.append(place)
    shutil.rmtree(incoming, ignore_errors=True)
    return moved
