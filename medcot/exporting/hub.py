"""Uploads an export to the Hugging Face hub, by its own client, and checks what arrived.

A call that breaks off is repeated: files that the hub has already are not sent again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.credentials import TOKENS, hub_token
from medcot.errors import InputError, RunFailed, one_line
from medcot.exporting.proof_file import PROOF
from medcot.network import limit_hub_requests, require_network

REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload: the repository, its address, and the commit that holds what was proved."""

    repository: str
    address: str
    revision: str
    private: bool


def check_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        InputError: It is missing or not of the form OWNER/NAME, or ``MEDCOT_OFFLINE`` is on.
    """
    if not name or not REPOSITORY.fullmatch(name):
        got = f"found {name!r}" if name else "--to hub needs the name of a repository"
        raise InputError("--repo", got, "expected OWNER/NAME")
    require_network(f"--repo {name}", os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return name


def upload(folder: Path, repository: str, *, public: bool) -> Upload:
    """Upload the files of ``folder`` in one commit. A new repository is private by default.

    Args:
        public: Create a public repository, or allow one that is public already.

    Raises:
        InputError: No token, one that is refused, no permission, or a public repository that was
            not asked for.
        RunFailed: The connection broke, or what arrived is not what was sent.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    limit_hub_requests()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=hub_token())
    with _explained(repository):
        api.whoami()
        api.create_repo(repository, private=not public, exist_ok=True)
        private = bool(api.model_info(repository).private)
        if not private and not public:
            raise InputError(
                f"--repo {repository}",
                "the repository is public",
                "pass --public, or name another one",
            )
        done = api.create_commit(
            repository,
            [_addition(folder, name) for name in _names(folder)],
            commit_message="Upload an export of medcot with its proof",
        )
        _require_arrived(api, folder, repository, done.oid)
    address = f"{api.endpoint}/{repository}"
    return Upload(repository, address, done.oid, private)


def _names(folder: Path) -> list[str]:
    found = (one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())
    return sorted(found)


def _addition(folder: Path, name: str) -> Any:
    from huggingface_hub import CommitOperationAdd

    if name == PROOF:
        return CommitOperationAdd(name, public_proof(folder))
    return CommitOperationAdd(name, str(folder / name))


def public_proof(folder: Path) -> bytes:
    """Return the proof without the answers, which may quote a question of private data."""
    found: dict[str, Any] = json.loads((folder / PROOF).read_text(encoding="utf-8"))
    for part in found["parts"]:
        part["answers"] = [
            {key: value for key, value in answer.items() if key not in ("run", "export")}
            for answer in part["answers"]
        ]
    return (json.dumps(found, ensure_ascii=False, indent=2) + "\n").encode()


def _require_arrived(api: Any, folder: Path, repository: str, revision: str) -> None:
    """Compare size and, for large files, checksum of every file in the commit."""
    sent = {name: _addition(folder, name) for name in _names(folder)}
    arrived = {
        one.path: one for one in api.get_paths_info(repository, list(sent), revision=revision)
    }
    for name, operation in sent.items():
        there, info = arrived.get(name), operation.upload_info
        lfs: Mapping[str, Any] | None = getattr(there, "lfs", None)
        right = there is not None and there.size == info.size
        if right and lfs is not None:
            right = lfs["sha256"] == info.sha256.hex()
        if not right:
            raise RunFailed(
                "export",
                Message("export_not_arrived", {"name": name, "repository": repository}),
                Message("needs_upload_again"),
            )


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the client's errors into one line."""
    try:
        yield
    except (InputError, RunFailed):
        raise
    except Exception as error:
        if (explained := explain(error, repository)) is None:
            raise
        raise explained from error


def explain(error: BaseException, repository: str) -> InputError | RunFailed | None:
    """Return one line for an error of the hub's client; None for an unexpected one."""
    import httpx
    from huggingface_hub import errors as hub

    where, names = f"--repo {repository}", " or ".join(TOKENS)
    status = next((s for one in _chain(error) if (s := _status(one))), 0)
    if isinstance(error, hub.LocalTokenNotFoundError):
        return InputError(where, "no hub token was found", f"set {names} to one that may write")
    if status == 401:
        needs = f"it may have expired: set {names} to a valid one that may write"
        return InputError(where, "the hub refused the token", needs)
    if status == 403:
        needs = "use a token that may write there, or name a repository of your own"
        return InputError(where, "the token may not write to it", needs)
    if str(error).startswith("Invalid metadata in README.md"):
        # The client asks the hub's validator before it sends anything.
        needs = "correct its metadata in the export's folder, and repeat the command"
        return InputError("README.md", one_line(str(error)), needs)
    if status == 400:
        return InputError(where, one_line(str(error)), "expected a name that the hub takes")
    network = (httpx.HTTPError, OSError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError)
    if any(isinstance(one, network) for one in _chain(error)):
        values = {"repository": repository, "why": one_line(str(error), 100)}
        return RunFailed(
            "export", Message("export_upload_broken", values), Message("needs_upload_again")
        )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int:
    return getattr(getattr(error, "response", None), "status_code", 0) or 0
