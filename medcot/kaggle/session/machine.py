"""What the kernel landed on, whether it will do, and how training is started on it."""

from __future__ import annotations

import sys
from pathlib import Path

from medcot.errors import RunFailed
from medcot.hardware.gpu_specs import OLDEST_CAPABILITY, capability
from medcot.hardware.machine import Machine
from medcot.kaggle.session.install import installed_version

SHOWN = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "unsloth",
)


def describe(machine: Machine) -> list[str]:
    """Versions and hardware, before anything can go wrong."""
    versions = [f"{name} {have}" for name in SHOWN if (have := installed_version(name))]
    unused = [f"unused: {gpu}" for gpu in machine.unused_gpus]
    gpus = [
        f"{gpu.name}, {gpu.memory_gib:.1f} GiB, compute capability {capability(gpu)}"
        for gpu in machine.gpus
    ]
    return [
        f"python {sys.version.split()[0]}, {', '.join(versions) or 'no torch'}",
        f"{machine.cpu_cores} CPU cores, {machine.memory_gib:.0f} GiB; "
        + ("; ".join([*gpus, *unused]) or "no GPU"),
    ]


def check_gpus(machine: Machine, wanted: bool) -> None:
    """Raises:
    RunFailed: a GPU was asked for and none, or one that is too old, was given.
    """
    if not wanted:
        return
    if machine.unused_gpus and not machine.gpus:
        raise RunFailed("machine", f"{machine.unused_gpus[0]}.", "Choose GPU T4 for the kernel.")
    if not machine.gpus:
        raise RunFailed(
            "machine",
            "a GPU was requested but none is attached.",
            "Check the weekly quota, and that the account's phone number is verified.",
        )
    for gpu in machine.gpus:
        if gpu.compute_capability < OLDEST_CAPABILITY:
            raise RunFailed(
                "machine",
                f"{gpu.name} has compute capability {capability(gpu)}; "
                f"{'.'.join(map(str, OLDEST_CAPABILITY))} is the oldest that works.",
                "Choose GPU T4 in the kernel's settings on Kaggle, under Accelerator.",
            )


def training_command(preset: str, gpus: int, config: Path, run: Path, resume: bool) -> list[str]:
    """One process, or one per GPU where the preset is for two T4s and two are there."""
    main = ["-m", "medcot", "run", "--config", str(config)]
    main += ["--out", str(run), *(["--resume"] if resume else [])]
    if processes_for(preset, gpus) == 1:
        return [sys.executable, *main]
    return [sys.executable, "-m", "medcot.kaggle.session.launch", str(gpus), *main]


def processes_for(preset: str, gpus: int) -> int:
    return gpus if preset == "kaggle-t4x2" and gpus > 1 else 1
