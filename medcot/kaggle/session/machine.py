"""Describe the machine that the kernel got, check its GPUs, and make the training command."""

from __future__ import annotations

import sys
from pathlib import Path

from medcot.errors import RunFailed
from medcot.hardware.gpu_specs import OLDEST_CAPABILITY, capability
from medcot.hardware.machine import Machine
from medcot.kaggle.session.install import installed_version
from medcot.kaggle.session.job import RunSettings

SHOWN_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "unsloth",
)


def describe_machine(machine: Machine) -> list[str]:
    """Return lines on versions and hardware, printed before anything can go wrong."""
    versions = [f"{name} {have}" for name in SHOWN_PACKAGES if (have := installed_version(name))]
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


def check_gpus(machine: Machine, *, wanted: bool) -> None:
    """Check that a job that wants a GPU got one that can train.

    Raises:
        RunFailed: there is none, or one that is too old.
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


def make_training_command(processes: int, config: Path, run: Path, *, resume: bool) -> list[str]:
    """Return the command that carries out the run in ``processes`` processes."""
    main = ["-m", "medcot", "run", "--config", str(config)]
    main += ["--out", str(run), *(["--resume"] if resume else [])]
    if processes == 1:
        return [sys.executable, *main]
    return [sys.executable, "-m", "medcot.kaggle.session.launch", str(processes), *main]


def count_processes(settings: RunSettings, gpus: int) -> int:
    """Return how many processes train: one per GPU with Kaggle's presets, else one.

    A session has two T4s at the quota of one. The batch is divided evenly, or one process has it.
    A run of several seeds starts a process for each of them by itself, one on each GPU.
    """
    if settings.seeds > 1:
        return 1
    if not settings.preset.startswith("kaggle-") or gpus < 2 or settings.batch % gpus:
        return 1
    return gpus
