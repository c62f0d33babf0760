"""Loads rows from the Hugging Face hub and explains the clients' errors in one line."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medcot.catalog import Message
from medcot.credentials import TOKENS, hub_token
from medcot.data.arrow import load_datasets
from medcot.data.connection import check_connection, explain_cache, explain_connection
from medcot.data.readers import BATCH, SourceRow, python_rows
from medcot.data.snapshots import COMMIT, Snapshot, find_snapshot
from medcot.errors import InputError, RunFailed, nearest
from medcot.network import OFFLINE, is_offline, limit_hub_requests

LOOKUP_TIMEOUT_S = 20.0
"""Seconds that the first, small request may take before the hub counts as out of reach."""

Kind = Literal["dataset", "model"]

_OUT_OF_REACH = ("error_no_connection", "error_offline_mode")
"""Codes of :func:`no_connection`."""


@dataclass(frozen=True, slots=True)
class HubRows:
    """The rows of one split, the commit they are from, and notes for the user."""

    rows: Iterator[SourceRow]
    revision: str
    notes: tuple[str, ...] = ()


def load_hub_rows(
    name: str,
    config: str | None,
    revision: str = "",
    split: str = "train",
    *,
    fallback: bool = False,
) -> HubRows:
    """Load one split of ``name`` at the commit that ``revision`` (empty: the main branch) names.

    With ``fallback`` the only configuration of a data set is taken if it is not ``config``.
    Without a network the copy in the client's cache is used, and a note says so. ``name`` may also
    be a folder of that cache, which is read without asking the hub.

    Raises:
        InputError: no network and no copy, no such data set, revision, configuration or split, or
            no access to it.
        RunFailed: too many requests, a connection that broke, or files that do not load.
    """
    from httpx import HTTPError

    if snapshot := find_snapshot(name):
        return _load_snapshot(snapshot, name, config, revision, split, fallback=fallback)
    datasets = load_datasets()
    try:
        commit = find_commit(name, revision, "dataset")
        if commit:
            chosen = _choose_config(name, config, commit, fallback=fallback)
            data = datasets.load_dataset(
                name, chosen, split=split, revision=commit, token=hub_token()
            )
        else:
            chosen = config
            data = _load_cached(name, config, split)
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise explain_hub_error(error, name, "dataset") from None
    loaded = _loaded_commit(data) or commit
    _require_same_revision(name, commit or revision, loaded)
    notes: list[str] = []
    if chosen != config:
        notes.append(f"configuration {chosen!r}, the only one of {name}")
    if not commit:
        notes.append(f"the hub is out of reach: commit {loaded[:12]} is taken from the cache")
    return HubRows(_iterate(data, name), loaded, tuple(notes))


def _load_snapshot(
    snapshot: Snapshot, name: str, config: str | None, revision: str, split: str, *, fallback: bool
) -> HubRows:
    """Load one split of a folder of the client's cache, as it would be loaded from the hub."""
    if not snapshot.commit.startswith(revision):
        got = f"this folder holds commit {snapshot.commit[:12]}"
        raise InputError(name, got, f"omit the revision {revision}, or name the data set itself")
    datasets, folder = load_datasets(), str(snapshot.folder)
    try:
        chosen = _choose_config(folder, config, None, fallback=fallback)
        data = datasets.load_dataset(folder, chosen, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise explain_hub_error(error, name, "dataset") from None
    notes = [f"{snapshot.repository} at commit {snapshot.commit[:12]}"]
    if chosen != config:
        notes.append(f"configuration {chosen!r}, the only one of {snapshot.repository}")
    return HubRows(_iterate(data, name), snapshot.commit, tuple(notes))


def explain_hub_error(error: BaseException, name: str, kind: Kind) -> InputError | RunFailed:
    """Translate an exception of the hub's clients for the user.

    The clients wrap one error in another, so the whole chain is searched.

    Args:
        name: What the user wrote: the repository, behind an option or alone.
    """
    from huggingface_hub import errors as hub

    chain = list(_chain(error))
    status = next((s for e in chain if (s := _status(e))), 0)
    kinds = {type_ for e in chain for type_ in type(e).__mro__}
    repository = name.rpartition(" ")[2]
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
    if hub.GatedRepoError in kinds and not hub_token():
        needs = f"set {' or '.join(TOKENS)} to a token of an account with access ({page})"
        return InputError(name, f"this {kind} is gated and no token was found", needs)
    if hub.GatedRepoError in kinds:
        got = f"this {kind} is gated and the token's account has no access"
        return InputError(name, got, f"request access at {page}")
    if hub.RevisionNotFoundError in kinds:
        return InputError(name, "no such revision", "expected one of its branches, tags or commits")
    if status == 401 and hub.RepositoryNotFoundError not in kinds:
        return InputError(name, "the hub refused the token", f"set a valid {' or '.join(TOKENS)}")
    if hub.RepositoryNotFoundError in kinds:
        needs = f"check owner/name, or set {' or '.join(TOKENS)} if it is private"
        return InputError(name, f"no such {kind} on the hub", needs)
    return _explain_connection(chain, kinds, status, name, kind)


def is_out_of_reach(error: InputError) -> bool:
    """Return whether ``error`` says that the hub cannot be reached, or must not be."""
    return isinstance(error.got, Message) and error.got.code in _OUT_OF_REACH


def no_connection() -> Message:
    """Return why the hub is out of reach: a variable that says so, or else the connection."""
    from huggingface_hub import constants

    if is_offline():
        return Message("error_offline_mode", {"variable": OFFLINE})
    if constants.HF_HUB_OFFLINE:
        return Message("error_offline_mode", {"variable": "HF_HUB_OFFLINE"})
    return Message("error_no_connection")


def _explain_connection(
    chain: list[BaseException],
    kinds: set[type],
    status: int,
    name: str,
    kind: Kind,
) -> InputError | RunFailed:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    stage = "data" if kind == "dataset" else "model"
    if status == 429:
        wait = next((w for e in chain if (w := _retry_after(e))), "a while")
        remedy = f"Wait {wait} and try again; a token in {TOKENS[0]} raises the limit."
        return RunFailed(stage, f"{name}: the hub answered 429 (too many requests).", remedy)
    if explained := explain_connection(chain, kinds):
        return InputError(name, *explained)
    if status >= 500:
        return RunFailed(stage, f"{name}: the hub answered {status}.", "Try again later.")
    if kinds & {httpx.ReadError, httpx.RemoteProtocolError}:
        remedy = "Try again: complete files are kept."
        return RunFailed(stage, f"{name}: the connection to the hub broke ({chain[-1]}).", remedy)
    if kinds & {httpx.ConnectError, httpx.TimeoutException, ConnectionError, OfflineModeIsEnabled}:
        needs = "needs_local_file" if kind == "dataset" else "needs_local_folder"
        return InputError(name, no_connection(), Message(needs))
    if explained := explain_cache(Path(constants.HF_HUB_CACHE)):
        return InputError(name, *explained)
    root = chain[0]
    while root.__cause__:
        root = root.__cause__
    got = str(root) if isinstance(root, ValueError) else f"{type(root).__name__}: {root}"
    return InputError(name, got, f"expected a {kind} that loads")


_NO_CONNECTION = "no connection to the hub"


def find_commit(name: str, revision: str, kind: Kind) -> str:
    """Return the commit that ``revision`` names now, or "" if the hub is out of reach.

    Access to a gated repository is checked here, because ``datasets`` hides the refusal behind
    the failed search of its cache, and because the clients' own first request retries for half a
    minute without a network.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    check_connection()
    limit_hub_requests()
    api = HfApi(token=hub_token())
    try:
        look_up = api.dataset_info if kind == "dataset" else api.model_info
        info = look_up(name, revision=revision or None, timeout=LOOKUP_TIMEOUT_S)
        if info.gated:
            api.auth_check(name, repo_type=kind)
    except (httpx.ConnectError, httpx.TimeoutException, OfflineModeIsEnabled) as error:
        if any(isinstance(one, ssl.SSLError) for one in _chain(error)):
            raise
        return ""
    return info.sha or ""


def _load_cached(name: str, config: str | None, split: str) -> Any:
    """Load the copy in the client's cache.

    This is the builder that ``datasets.load_dataset`` falls back to, after half a minute of
    retries unless ``HF_HUB_OFFLINE`` is set. Setting it here would switch off the hub for all
    threads of this process.
    """
    from datasets.packaged_modules.cache.cache import (  # pyright: ignore[reportMissingTypeStubs]
        Cache,
    )

    try:
        builder = Cache(
            dataset_name=name.split("/")[-1],
            repo_id=name,
            config_name=config,
            version="auto",
            hash="auto",
        )
    except ValueError as error:  # nothing is cached under this name
        raise ConnectionError(str(error)) from error
    return builder.as_dataset(split=split)


def _choose_config(
    name: str, config: str | None, commit: str | None, *, fallback: bool
) -> str | None:
    """Return ``config`` if the data set has it, or with ``fallback`` the only one it has."""
    if config is None:
        return None
    known: list[str] = load_datasets().get_dataset_config_names(
        name, revision=commit, token=hub_token()
    )
    if config in known:
        return config
    if len(known) == 1 and fallback:
        return known[0]
    needs = f"set --dataset-config to one of {', '.join(known)}{nearest(config, known)}"
    raise InputError(name, f"no configuration {config!r}", needs)


def _loaded_commit(data: Any) -> str:
    """Return the commit a loaded split is from: the client's cache has a folder for each."""
    folders = (Path(file["filename"]).parent.name for file in data.cache_files)
    return next((name for name in folders if COMMIT.fullmatch(name)), "")


def _require_same_revision(name: str, wanted: str, loaded: str) -> None:
    """Refuse another commit than was asked for: the client's cache returns any copy it has."""
    if wanted and not loaded.startswith(wanted):
        got = f"{_NO_CONNECTION}, and the cached copy is of commit {loaded[:12]}"
        raise InputError(name, got, f"connect to load revision {wanted}")


def _iterate(data: Any, name: str) -> Iterator[SourceRow]:
    number = 0
    for batch in data.with_format("arrow").iter(batch_size=BATCH):
        for values in python_rows(batch):
            number += 1
            yield SourceRow(number, f"{name}, row {number}", values, header=f"{name}, columns")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int:
    return getattr(getattr(error, "response", None), "status_code", 0) or 0


def _retry_after(error: BaseException) -> str:
    seconds = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return f"{seconds} s" if seconds.isdecimal() else seconds
