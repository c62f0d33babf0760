"""Make the folder that `kaggle kernels push -p` accepts. Nothing here reaches the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.errors import InputError
from medcot.kaggle.client.bundle import (
    Orders,
    collect,
    pack,
    refuse_leaks,
    scan,
    write_script,
)
from medcot.kaggle.client.local_login import find_login
from medcot.kaggle.client.metadata import (
    LONGEST_SESSION_S,
    SOURCE_LIMIT,
    TITLE,
    check_source,
    machine_shape,
    make_metadata,
    slug_of,
)
from medcot.kaggle.client.sources import PROJECT
from medcot.kaggle.session.secret_scan import known_secrets
from medcot.runs.directory import RunDirectory

FOLDER = "kaggle"
"""Where a run directory keeps what concerns Kaggle."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the kernel is to be made, beside what it computes.

    ``gpu`` None takes one where the preset is for one. ``margin_s`` of the session's ``limit_s``
    is kept for saving. ``as_dataset`` sends the bundle as a private data set whatever its size.
    """

    title: str = TITLE
    gpu: bool | None = None
    public: bool = False
    limit_s: int = LONGEST_SESSION_S
    margin_s: int = 900
    as_dataset: bool = False
    orders: Orders = field(default_factory=Orders)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A built folder, ready to push. ``dataset`` is the folder of the data set it needs, if any."""

    folder: Path
    ref: str
    checksum: str
    size: int
    metadata: Mapping[str, Any]
    orders: Orders
    dataset: Path | None = None


def build(
    config: RunConfig, run: RunDirectory, owner: str, wishes: Wishes, project: Path = PROJECT
) -> Kernel:
    """Write ``run``'s kernel folder for the account ``owner``. The run directory is made if new.

    Raises:
        InputError: names, sizes or privacy that Kaggle would not take; a config that cannot
            travel; a secret in what would leave; a run directory of another config.
    """
    gpu = needs_gpu(config) if wishes.gpu is None else wishes.gpu
    orders = _complete(wishes, gpu)
    title, shape = wishes.title, machine_shape(gpu)
    metadata = make_metadata(owner, title, gpu=gpu, shape=shape, public=wishes.public)
    bundle = collect(config, orders, project)
    refuse_leaks(scan(bundle.files, known_secrets()))
    template = project / "kaggle" / "kernel.py"
    packed = pack(bundle)
    script = write_script(bundle.checksum, packed, template)
    inline = not wishes.as_dataset and len(script.encode()) <= SOURCE_LIMIT
    if not inline:
        script = write_script(bundle.checksum, None, template)
        metadata["dataset_sources"] = [f"{owner}/{dataset_slug(title)}"]
    if orders.secrets_dataset:
        metadata["dataset_sources"] = [*metadata["dataset_sources"], orders.secrets_dataset]
    if orders.previous:
        metadata["kernel_sources"] = [orders.previous]
    check_source(script)
    _claim(run, config)
    folder = run.path / FOLDER / "kernel"
    _write(folder, script, metadata)
    dataset = None
    if not inline:
        dataset = run.path / FOLDER / "dataset"
        _write_dataset(dataset, owner, title, bundle.file_name, packed)
    size = len(script.encode())
    return Kernel(folder, metadata["id"], bundle.checksum, size, metadata, orders, dataset)


def needs_gpu(config: RunConfig) -> bool:
    """Whether the preset was made for a GPU; only the demo is not."""
    return config.preset != "demo"


def owner_of_this_machine(environ: Mapping[str, str] | None = None) -> str:
    """The account name that this machine's files or environment give, without asking Kaggle.

    Raises:
        InputError: they give none; an access token does not tell whose it is.
    """
    environ = os.environ if environ is None else environ
    login = find_login(environ)
    if name := environ.get("KAGGLE_USERNAME", "").strip() or (login.user if login else ""):
        return name
    raise InputError("--owner", "no account name found", "pass --owner NAME or set KAGGLE_USERNAME")


def dataset_slug(title: str) -> str:
    """The private data set that carries the bundle of the kernel called ``title``."""
    return f"{slug_of(title)[:40].rstrip('-')}-bundle"


def _complete(wishes: Wishes, gpu: bool) -> Orders:
    if not 600 <= wishes.limit_s <= LONGEST_SESSION_S:
        raise InputError("--hours", f"found {wishes.limit_s / 3600:g}", "expected 1/6 to 12 hours")
    if not 60 <= wishes.margin_s <= wishes.limit_s / 2:
        needs = "expected 1 minute to half of the session"
        raise InputError("--margin", f"found {wishes.margin_s / 60:g}", needs)
    return replace(wishes.orders, gpu=gpu, limit_s=wishes.limit_s, margin_s=wishes.margin_s)


def _claim(run: RunDirectory, config: RunConfig) -> None:
    if not run.exists():
        run.create(config)
    elif run.config() != config:
        raise InputError(
            f"--out {run.path}", "it holds a run of another config", "use another folder"
        )


def _write(folder: Path, script: str, metadata: Mapping[str, Any]) -> None:
    target = RunDirectory(folder)
    target.write_text("kernel.py", script)
    target.write_json("kernel-metadata.json", metadata)


def _write_dataset(folder: Path, owner: str, title: str, name: str, packed: bytes) -> None:
    for old in folder.glob("*.bundle"):
        old.unlink()
    slug = dataset_slug(title)
    RunDirectory(folder).write_json(
        "dataset-metadata.json",
        {"id": f"{owner}/{slug}", "title": slug, "licenses": [{"name": "other"}]},
    )
    (folder / name).write_bytes(packed)
