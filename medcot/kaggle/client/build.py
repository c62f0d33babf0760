"""Build the folder that `kaggle kernels push -p` accepts. Nothing here uses the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medcot.config.schema import RunConfig
from medcot.credentials import known_secrets
from medcot.errors import InputError
from medcot.kaggle.client.bundle import (
    Bundle,
    collect,
    pack,
    refuse_secrets,
    scan_files,
    write_script,
)
from medcot.kaggle.client.local_login import find_login
from medcot.kaggle.client.metadata import (
    CODE_FILES,
    LONGEST_SESSION_S,
    SOURCE_LIMIT,
    TITLE,
    KernelType,
    check_source,
    machine_shape,
    make_metadata,
    slug_of,
)
from medcot.kaggle.client.notebook import write_notebook
from medcot.kaggle.session.job import JobSpec
from medcot.paths import PROJECT
from medcot.planning.constraints import unused_packages
from medcot.runs.directory import RunDirectory
from medcot.runs.local_paths import resolve_local_paths

CodePlace = Literal["inline", "dataset"]

FOLDER = "kaggle"
"""The folder of a run directory for everything about Kaggle."""
KERNEL_FOLDER = f"{FOLDER}/kernel"
"""The folder in a run directory that is pushed."""


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How to make the kernel; what it computes is in the run's config.

    ``gpu`` None requests a GPU if the preset is for one. ``margin_s`` of the session's ``limit_s``
    is kept for saving. ``code`` says whether the source or a private data set carries medcot and
    the data; None takes the source unless it becomes too large. ``kind`` is what Kaggle shows.
    ``job`` is completed by :func:`build` with the GPU and these times.
    """

    title: str = TITLE
    gpu: bool | None = None
    public: bool = False
    limit_s: int = LONGEST_SESSION_S
    margin_s: int = 900
    code: CodePlace | None = None
    kind: KernelType = "script"
    job: JobSpec = field(default_factory=JobSpec)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A built folder, ready to push.

    ``size`` is that of the script in bytes; ``dataset`` is the folder of the data set that carries
    the bundle, or None if the script does.
    """

    folder: Path
    ref: str
    checksum: str
    size: int
    metadata: Mapping[str, Any]
    job: JobSpec
    dataset: Path | None = None


def build(
    config: RunConfig,
    run: RunDirectory,
    owner: str,
    options: KernelOptions,
    project: Path = PROJECT,
) -> Kernel:
    """Write ``run``'s kernel folder for the account ``owner``; create the run directory if new.

    Raises:
        InputError: names, sizes or privacy that Kaggle would not accept; a config that needs local
            files that cannot be sent; a secret in what would be sent; a run directory of another
            config.
    """
    gpu, title = needs_gpu(config) if options.gpu is None else options.gpu, options.title
    job, shape = _complete_job(options, config, gpu=gpu), machine_shape(gpu=gpu)
    metadata = make_metadata(
        owner, title, gpu=gpu, shape=shape, public=options.public, kind=options.kind
    )
    bundle = collect(config, job, project)
    refuse_secrets(scan_files(bundle.files, known_secrets()))
    packed = pack(bundle)
    source = _write_source(options, bundle, packed, project)
    fits = len(source.encode()) <= SOURCE_LIMIT
    inline = options.code == "inline" or (options.code is None and fits)
    if not inline:
        source = _write_source(options, bundle, None, project)
        metadata["dataset_sources"] = [f"{owner}/{dataset_slug(title)}"]
    if job.secrets_dataset:
        metadata["dataset_sources"] = [*metadata["dataset_sources"], job.secrets_dataset]
    if job.previous:
        metadata["kernel_sources"] = [job.previous]
    check_source(source)
    _claim(run, config)
    folder = run.path / KERNEL_FOLDER
    _write(folder, source, metadata)
    dataset = None if inline else run.path / FOLDER / "dataset"
    if dataset is not None:
        _write_dataset(dataset, owner, title, bundle.file_name, packed)
    size = len(source.encode())
    return Kernel(folder, metadata["id"], bundle.checksum, size, metadata, job, dataset)


def needs_gpu(config: RunConfig) -> bool:
    """Return whether the preset is for a GPU; only the demo is not."""
    return config.preset != "demo"


def find_owner(environ: Mapping[str, str] | None = None) -> str:
    """Return the account name in this machine's files or environment, without asking Kaggle.

    Raises:
        InputError: there is none; an access token does not contain it.
    """
    environ = os.environ if environ is None else environ
    login = find_login(environ)
    if name := environ.get("KAGGLE_USERNAME", "").strip() or (login.user if login else ""):
        return name
    raise InputError("--owner", "no account name found", "pass --owner NAME or set KAGGLE_USERNAME")


def dataset_slug(title: str) -> str:
    """Return the slug of the private data set that carries the bundle of the kernel ``title``."""
    return f"{slug_of(title)[:40].rstrip('-')}-bundle"


def _complete_job(options: KernelOptions, config: RunConfig, *, gpu: bool) -> JobSpec:
    if not 600 <= options.limit_s <= LONGEST_SESSION_S:
        raise InputError("--hours", f"found {options.limit_s / 3600:g}", "expected 1/6 to 12 hours")
    if not 60 <= options.margin_s <= options.limit_s / 2:
        needs = "expected 1 minute to half of the session"
        raise InputError("--margin", f"found {options.margin_s / 60:g}", needs)
    return replace(
        options.job,
        gpu=gpu,
        limit_s=options.limit_s,
        margin_s=options.margin_s,
        unused=unused_packages(config),
    )


def _claim(run: RunDirectory, config: RunConfig) -> None:
    if not run.exists():
        run.create(config)
    elif run.config() != resolve_local_paths(config, run.working_directory()):
        raise InputError(
            f"--out {run.path}", "it holds a run of another config", "use another folder"
        )


def _write_source(
    options: KernelOptions, bundle: Bundle, packed: bytes | None, project: Path
) -> str:
    script = write_script(bundle, packed, project / "kaggle" / "kernel.py")
    return script if options.kind == "script" else write_notebook(script)


def _write(folder: Path, source: str, metadata: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE_FILES.values():
        (folder / name).unlink(missing_ok=True)
    target = RunDirectory(folder)
    target.write_text(metadata["code_file"], source)
    target.write_json("kernel-metadata.json", metadata)


def _write_dataset(folder: Path, owner: str, title: str, name: str, packed: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.bundle"):
        old.unlink()
    slug = dataset_slug(title)
    RunDirectory(folder).write_json(
        "dataset-metadata.json",
        {"id": f"{owner}/{slug}", "title": slug, "licenses": [{"name": "other"}]},
    )
    (folder / name).write_bytes(packed)
