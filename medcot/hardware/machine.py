"""Detects the machine, or describes the one that a GPU's name stands for, without torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from medcot.catalog import Reason
from medcot.errors import InputError, nearest
from medcot.hardware.gpu_specs import (
    GPU_MODELS,
    Gpu,
    capability,
    is_usable,
    recognise_gpu,
)
from medcot.hardware.host_memory import available_memory_gib

GPU_PACKAGES = ("bitsandbytes", "unsloth", "flash_attn")
"""Optional packages that extend what can run on a GPU."""


@dataclass(frozen=True)
class Machine:
    """The resources that a run can use.

    ``memory_gib`` is free RAM, within the limit that a container sets. ``packages`` are those of
    ``GPU_PACKAGES`` that are installed. ``processes`` is the number of training
    processes that the launcher started, each with one GPU; with ``split`` (FSDP) each holds a part
    of the weights. ``unused_gpus`` says why GPUs that are there cannot be used. ``mps`` tells that
    torch can use a Mac's GPU, which shares the RAM.
    """

    gpus: tuple[Gpu, ...]
    cpu_cores: int
    memory_gib: float
    system: str
    packages: tuple[str, ...] = ()
    processes: int = 1
    unused_gpus: tuple[Reason, ...] = ()
    split: bool = False
    mps: bool = False


_NAMED = {
    "T4": ("T4", 1, 4, 29.0),
    "2xT4": ("T4", 2, 4, 29.0),
    "L4": ("L4", 1, 8, 30.0),
    "A10G": ("A10G", 1, 8, 30.0),
    "RTX 4090": ("RTX 4090", 1, 16, 60.0),
    "A100": ("A100", 1, 12, 80.0),
    "H100": ("H100", 1, 16, 120.0),
    "H200": ("H200", 1, 16, 120.0),
}
"""``--gpu`` names: GPU model, how many, CPU cores and free RAM in GiB of a usual host."""


def named_machine(name: str) -> Machine:
    """Return the machine that ``--gpu NAME`` stands for, with the optional GPU packages.

    Raises:
        InputError: unknown name.
    """
    for known, (model, count, cores, memory) in _NAMED.items():
        if _squeezed(known) == _squeezed(name):
            gpus = (GPU_MODELS[model].as_gpu(),) * count
            return Machine(gpus, cores, memory, "Linux", ("bitsandbytes", "unsloth"), count)
    names = list(_NAMED)
    needs = f"expected one of {', '.join(names)}{nearest(name, names)}"
    raise InputError("--gpu", f"found {name!r}", needs)


def detect_machine() -> Machine:
    """Detect this machine; respects ``CUDA_VISIBLE_DEVICES`` and the launcher's ``WORLD_SIZE``."""
    rocm = torch_build("hip") is not None
    gpus, unused = (_ask_torch() if rocm else _detect_gpus()), ()
    if gpus and not rocm and torch_build("cuda") is None:
        unused = tuple(Reason("preset_no_cuda", {"gpu": gpu.name}) for gpu in gpus)
        gpus = ()
    processes = os.environ.get("WORLD_SIZE", "1")
    count = max(1, int(processes)) if processes.isdecimal() and len(processes) < 10 else 1
    return Machine(
        gpus=gpus,
        cpu_cores=available_cores(),
        memory_gib=available_memory_gib(),
        system=f"{platform.system()} {platform.machine()}",
        packages=tuple(name for name in GPU_PACKAGES if find_spec(name) is not None),
        processes=count,
        unused_gpus=unused,
        split=count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true",
        mps=not gpus and _has_mps(),
    )


def choose_preset(machine: Machine) -> tuple[str, Reason]:
    """Return the preset that ``auto`` means on ``machine``, and why."""
    if not machine.gpus:
        none = Reason("preset_mps" if machine.mps else "preset_no_gpu")
        return "demo", machine.unused_gpus[0] if machine.unused_gpus else none
    usable = usable_gpus(machine)
    if not usable:
        old = machine.gpus[0]
        values = {"gpu": old.name, "capability": capability(old)}
        return "demo", Reason("preset_old_gpu", values)
    gpu = min(usable, key=lambda gpu: gpu.memory_gib)
    values = {"count": len(usable), "gpu": gpu.name, "memory_gib": gpu.memory_gib}
    reason = Reason("preset_gpus" if len(usable) > 1 else "preset_gpu", values)
    if gpu.memory_gib >= 70:
        return "gpu-80g", reason
    if gpu.memory_gib >= 20:
        return "gpu-24g", reason
    if gpu.memory_gib >= 9.5:
        return "kaggle-t4", reason
    return "demo", Reason("preset_small_gpu", {"found": reason})


def usable_gpus(machine: Machine) -> tuple[Gpu, ...]:
    """Return the GPUs that are new enough to train on."""
    return tuple(gpu for gpu in machine.gpus if is_usable(gpu))


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPU cores this process may use, within a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def torch_build(toolkit: Literal["cuda", "hip"]) -> str | None:
    """Return the version of CUDA, or of AMD's HIP, that the installed torch is built with, or None.

    It is read without importing torch.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{toolkit}\b[^=]*=\s*['\"]([\d.]+)", text, re.MULTILINE)
    return found.group(1) if found else None


def read_gpus(listing: str, visible: str | None = None) -> tuple[Gpu, ...]:
    """Parse nvidia-smi's listing: index, uuid, name, free MiB, compute capability.

    ``visible`` is ``CUDA_VISIBLE_DEVICES``: it picks and orders them, and like CUDA stops at the
    first name that it does not know.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[3].isdecimal()]
    if visible is not None:
        rows = _visible(rows, [name.strip() for name in visible.split(",")])
    return tuple(
        recognise_gpu(name, int(free) / 1024, _as_pair(level)) for _, _, name, free, level in rows
    )


def _visible(rows: Sequence[list[str]], names: Sequence[str]) -> list[list[str]]:
    chosen: list[list[str]] = []
    for name in names:
        match = [row for row in rows if name and (row[0] == name or row[1].startswith(name))]
        if len(match) != 1:
            break
        chosen += match
    return chosen


def _detect_gpus() -> tuple[Gpu, ...]:
    """Ask nvidia-smi for CUDA GPUs; importing torch would take seconds."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return _ask_torch() if Path("/proc/driver/nvidia/version").exists() else ()
    query = "--query-gpu=index,uuid,name,memory.free,compute_cap"
    try:
        answer = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return _ask_torch()
    return read_gpus(answer, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _ask_torch() -> tuple[Gpu, ...]:
    """Ask torch for GPUs: slower, for drivers without a recent nvidia-smi and for AMD's GPUs."""
    rocm = torch_build("hip") is not None
    if not rocm and torch_build("cuda") is None:
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(
        replace(
            recognise_gpu(
                torch.cuda.get_device_name(index),
                torch.cuda.mem_get_info(index)[0] / 2**30,
                torch.cuda.get_device_capability(index),
            ),
            rocm=rocm,
        )
        for index in range(torch.cuda.device_count())
    )


def _has_mps() -> bool:
    """Ask torch for the GPU of a Mac: its system may be too old for it, or a virtual machine."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64") or find_spec("torch") is None:
        return False
    import torch

    return torch.backends.mps.is_available()


def _as_pair(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())
