"""Describes where a run happened: versions, hardware, revisions and fingerprints."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.hardware.machine import Machine
from medcot.records import Dataset

NOT_MEDICAL_ADVICE = "Generated text; not medical advice, and not for use on patients."

PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "huggingface_hub", "medcot", "peft",
    "safetensors", "tokenizers", "torch", "transformers", "trl", "unsloth",
)  # fmt: skip


def describe_environment(
    config: RunConfig, dataset: Dataset, machine: Machine, model_revision: str
) -> dict[str, Any]:
    """Return the content of ``environment.json``."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "machine": asdict(machine),
        "git": git_revision(),
        "model": {"name": config.model, "revision": model_revision},
        "dataset": {
            "name": dataset.name,
            "revision": dataset.revision,
            "fingerprint": dataset.fingerprint,
            "cases": len(dataset.cases),
        },
    }


def package_version(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Return the commit of the project's checkout, with ``+`` if files changed, or None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
