"""Look at the kernel's image without training, and write what was found to `probe.json`.

Runs in a session on a CPU, which is free: versions, network, GPUs, and what pip would install.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import time
import urllib.request
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from medcot.errors import one_line
from medcot.hardware.machine import Machine
from medcot.kaggle.session import install
from medcot.kaggle.session.requirements import requirements
from medcot.kaggle.session.subprocesses import Say

FILE = "probe.json"

HOSTS = ("https://pypi.org/simple/pip/", "https://huggingface.co/api/models?limit=1")
"""Asked whether the kernel has internet access: the package index and the hub."""

SAMPLE = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/resolve/main/model.safetensors"
SAMPLE_BYTES = 64 << 20
"""A part of a public model, to measure how fast the hub's files arrive."""

EXTRAS = ("gpu", "app", "track")
"""What a run on a GPU installs; without :data:`.install.OPTIONAL` if it uses the fused engine."""

_STAMPS = {"build_date": "/etc/build_date", "git_commit": "/etc/git_commit"}
"""Where Kaggle's image says what it was built from."""

_HOST_S = 15.0


def probe_image(folder: Path, output: Path, pins: str, machine: Machine, say: Say) -> list[str]:
    """Write ``probe.json`` to ``output`` and return lines for the user. Never raises.

    Args:
        folder: where pip's files may be written.
        output: the folder that Kaggle keeps.
        pins: the text of `constraints.txt`.
        machine: this one.
        say: prints a line.
    """
    reached = {url.split("/")[2]: _reaches(url) for url in HOSTS}
    rate = _measure_hub() if reached["huggingface.co"] else None
    facts: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": platform.python_version(),
        **{name: _read(Path(path)) for name, path in _STAMPS.items()},
        "gpus": [gpu.name for gpu in machine.gpus],
        "internet": reached,
        "hub_mb_per_s": rate,
        "packages": freeze(),
        "installation": {},
    }
    lines = [f"internet: {host} {'answers' if ok else 'no answer'}" for host, ok in reached.items()]
    if rate:
        lines.append(f"hub: {rate:.0f} MB/s in one stream")
    lines.append(f"GPUs in this session: {', '.join(facts['gpus']) or 'none'}")
    for kind, unused in (("fused", install.OPTIONAL), ("unsloth", ())):
        plan = _plan(folder, pins, unused, say)
        facts["installation"][kind] = plan
        lines.append(f"{kind} run: {_describe(plan)}")
        if plan["adds"] is None:
            break  # the next needs more of the same
    (output / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return lines


def freeze() -> dict[str, str]:
    """Return the version of every installed distribution by its normalised name."""
    found = {}
    for one in distributions():
        name, version = one.metadata["Name"], one.version
        if name and version:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return dict(sorted(found.items()))


def _plan(folder: Path, pins: str, unused: tuple[str, ...], say: Say) -> dict[str, Any]:
    """Resolve the installation of a run; return what it adds, or why it cannot."""
    began = time.monotonic()
    heard: list[str] = []
    try:
        install.check_kept(requirements(), EXTRAS, say)
        wanted = install.find_missing(requirements(), EXTRAS, unused=unused)
        adds = install.plan_installation(wanted, pins, folder, heard.append)
        errors = [line for line in heard if line.startswith("ERROR")]
        reason = "" if adds is not None else next(iter([*errors, *heard]), "pip failed")
    except Exception as error:  # noqa: BLE001 - the list of packages must come home all the same
        adds, reason = None, one_line(str(error))
    return {"adds": adds, "reason": reason, "seconds": round(time.monotonic() - began, 1)}


def _describe(plan: dict[str, Any]) -> str:
    if plan["adds"] is None:
        return f"cannot be installed: {plan['reason']}"
    touched = [line for line in plan["adds"] if line.partition("==")[0] in install.KEPT]
    kept = f"would replace {', '.join(touched)}" if touched else "keeps torch"
    return f"pip would add or replace {len(plan['adds'])} packages and {kept}"


def _reaches(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_HOST_S) as answer:
            return answer.status == 200
    except (OSError, ValueError):  # URLError is an OSError
        return False


def _measure_hub() -> float | None:
    """Return the rate in 10**6 bytes per second at which the hub's files arrive, if they do."""
    request = urllib.request.Request(SAMPLE, headers={"Range": f"bytes=0-{SAMPLE_BYTES - 1}"})
    began, size = time.monotonic(), 0
    try:
        with urllib.request.urlopen(request, timeout=_HOST_S) as answer:
            while size < SAMPLE_BYTES and time.monotonic() < began + 4 * _HOST_S:
                part = answer.read(1 << 20)
                if not part:
                    break
                size += len(part)
    except (OSError, ValueError):
        return None
    return round(size / 1e6 / (time.monotonic() - began), 1) if size else None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()[:200]
    return ""
