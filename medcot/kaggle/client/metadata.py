"""Make and check `kernel-metadata.json`, which tells Kaggle about a kernel."""

from __future__ import annotations

import re
from typing import Any, Literal

from medcot.errors import InputError

SOURCE_LIMIT = 900 * 1024
"""The most bytes of source in a kernel; Kaggle refuses about a megabyte."""

LONGEST_SESSION_S = 12 * 3600
"""Kaggle's limit."""
TITLE = "medcot fine-tuning"
"""The title of a kernel unless another is given."""

KernelType = Literal["script", "notebook"]
CODE_FILES: dict[KernelType, str] = {"script": "kernel.py", "notebook": "kernel.ipynb"}
"""Each type of kernel, and its source's name in the kernel's folder."""

_WHERE = "kernel-metadata.json"
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KEYS = {
    "id": str,
    "title": str,
    "code_file": str,
    "language": str,
    "kernel_type": str,
    "is_private": bool,
    "enable_gpu": bool,
    "enable_tpu": bool,
    "enable_internet": bool,
    "machine_shape": str,
    "dataset_sources": list,
    "competition_sources": list,
    "kernel_sources": list,
    "model_sources": list,
    "keywords": list,
}
TWO_T4S = "NvidiaTeslaT4"
"""The API's name for what Kaggle's pages call "GPU T4 x2", the only T4 machine that is offered
(Kaggle/kaggle-cli pull request 1198: a single T4 is not supported, ``NvidiaTeslaT4Highmem`` is for
Kaggle's own use). A preset for one GPU leaves the second idle."""


def machine_shape(*, gpu: bool) -> str:
    """Return Kaggle's name for the machine, empty for a CPU. Without it a kernel may get a P100."""
    return TWO_T4S if gpu else ""


def slug_of(title: str) -> str:
    """Return the slug that Kaggle makes of ``title``."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def make_metadata(
    owner: str,
    title: str,
    *,
    gpu: bool,
    shape: str,
    public: bool = False,
    kind: KernelType = "script",
) -> dict[str, Any]:
    """Make the metadata of a kernel without sources.

    Raises:
        InputError: as :func:`check_metadata`.
    """
    metadata: dict[str, Any] = {
        "id": f"{owner}/{slug_of(title)}",
        "title": title,
        "code_file": CODE_FILES[kind],
        "language": "python",
        "kernel_type": kind,
        "is_private": not public,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": True,
        "machine_shape": shape,
        "dataset_sources": [],
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
        "keywords": [],
    }
    check_metadata(metadata)
    return metadata


def check_metadata(metadata: dict[str, Any], *, public: bool | None = None) -> None:
    """Check metadata for what Kaggle would refuse or would accept with another meaning.

    ``public`` is the visibility that was asked for; None accepts either.

    Raises:
        InputError: names the field, its value, and what is expected.
    """
    for key, kind in _KEYS.items():
        if not isinstance(metadata.get(key), kind):
            needs = "expected true or false" if kind is bool else f"expected a {kind.__name__}"
            raise InputError(f"{_WHERE}, {key}", f"found {metadata.get(key)!r}", needs)
    if unknown := sorted(set(metadata) - set(_KEYS) - {"id_no", "docker_image"}):
        raise InputError(f"{_WHERE}, {unknown[0]}", "Kaggle ignores this field", "remove it")
    _check_name(metadata["id"], metadata["title"])
    kinds = {file: kind for kind, file in CODE_FILES.items()}
    if metadata["code_file"] not in kinds:
        got, needs = f"found {metadata['code_file']!r}", f"expected {' or '.join(kinds)}"
        raise InputError(f"{_WHERE}, code_file", got, needs)
    kind = kinds[metadata["code_file"]]
    for key, value in (("language", "python"), ("kernel_type", kind)):
        if metadata[key] != value:
            raise InputError(f"{_WHERE}, {key}", f"found {metadata[key]!r}", f"expected {value!r}")
    if public is not None and metadata["is_private"] == public:
        raise InputError(
            f"{_WHERE}, is_private",
            f"found {metadata['is_private']}",
            "expected true unless --public is given",
        )
    if metadata["machine_shape"] and not metadata["enable_gpu"]:
        got = f"found {metadata['machine_shape']} without a GPU"
        raise InputError(f"{_WHERE}, machine_shape", got, "set enable_gpu to true")
    for key in ("dataset_sources", "kernel_sources"):
        for source in metadata[key]:
            owner, _, slug = str(source).partition("/")
            if not _OWNER.fullmatch(owner) or not _SLUG.fullmatch(slug):
                raise InputError(f"{_WHERE}, {key}", f"found {source!r}", "expected OWNER/NAME")


def check_source(text: str, limit: int = SOURCE_LIMIT) -> None:
    """Check the size of a kernel's source in UTF-8, and that a script compiles.

    Raises:
        InputError: the source is larger than ``limit`` bytes.
        SyntaxError: it does not compile.
    """
    size = len(text.encode())
    if size > limit:
        raise InputError(
            "kernel source",
            f"{size / 1024:.0f} KB is more than the limit of {limit // 1024} KB",
            "use --code dataset, which sends medcot's sources as a private data set",
        )
    if not text.startswith("{"):
        compile(text, "kernel.py", "exec")


def _check_name(identity: str, title: str) -> None:
    if not 5 <= len(title) <= 50:
        got = f"{title!r} has {len(title)} characters"
        raise InputError("--title", got, "expected 5 to 50 characters")
    if not re.fullmatch(r"[A-Za-z0-9]+(?:[ -][A-Za-z0-9]+)*", title):
        raise InputError(
            "--title",
            f"found {title!r}",
            "expected ASCII letters and digits, separated by single spaces or hyphens",
        )
    owner, _, slug = identity.partition("/")
    if not _OWNER.fullmatch(owner) or owner == "OWNER":
        raise InputError(
            "--owner", f"found {owner!r}", "expected the user name of a Kaggle account"
        )
    if slug != slug_of(title):
        needs = f"expected the title's slug, {slug_of(title)!r}"
        raise InputError(f"{_WHERE}, id", f"found {slug!r}", needs)
