"""Find what pip would install on Kaggle's image as last seen (`image.json`); install nothing.

    python kaggle/resolve.py /path/to/python3.12 /path/to/python3.13

Rewrites `constraints.txt`, the versions that a kernel adds to the image, and `index.json`, what
these and the image's own packages require. With the latter the tests repeat the resolution without
a network. This needs the package index, not Kaggle: the image is a folder of metadata without
content, which pip takes for installed packages.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medcot.kaggle.session.install import KEPT
from medcot.kaggle.session.requirements import requirements

HERE = Path(__file__).parent
IMAGE, INDEX, CONSTRAINTS = (HERE / n for n in ("image.json", "index.json", "constraints.txt"))
EXTRAS = ("gpu", "app", "track")
HEADER = (
    "# Made by resolve.py: what pip adds to Kaggle's image, for every Python that it may have.\n"
)
BESIDE_TORCH = {"2.10": "torchao<0.18"}
"""Limits that no metadata states: torchao 0.18 is compiled for torch 2.11 and names no torch."""

Facts = Mapping[str, Mapping[str, Any]]
"""What distributions require, by `name==version`: `requires` and `python` of their metadata."""


def read_image() -> dict[str, str]:
    """Return the versions of the image's packages by normalised name."""
    return json.loads(IMAGE.read_text("utf-8"))["packages"]


def read_index() -> Facts:
    """Return the recorded requirements."""
    return json.loads(INDEX.read_text("utf-8"))


def make_image(folder: Path, facts: Facts) -> Path:
    """Make the image's packages as metadata in ``folder``, to be put on PYTHONPATH; return it."""
    for name, version in read_image().items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        text = _metadata(name, version, facts.get(f"{name}=={version}", {}))
        (info / "METADATA").write_text(text, encoding="utf-8")
        (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    return folder


def make_wheels(folder: Path, facts: Facts) -> Path:
    """Make a wheel without content for everything recorded, as an index of its own."""
    folder.mkdir(parents=True)
    for key, values in facts.items():
        name, _, version = key.partition("==")
        stem = f"{name.replace('-', '_')}-{version}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            info = f"{stem}.dist-info"
            wheel.writestr(f"{info}/METADATA", _metadata(name, version, values))
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


def wanted() -> list[str]:
    """Return the package's requirements with the extras that a GPU kernel may use."""
    lines = []
    for line in requirements():
        need, _, marker = line.partition(";")
        if "extra ==" not in marker:
            lines.append(line)
        elif any(f'extra == "{extra}"' in marker for extra in EXTRAS):
            lines.append(need.strip())
    return lines


def would_install(python: str, image: Path, pins: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Map what pip would add to the ``image`` folder, by normalised name, to its metadata.

    Raises:
        subprocess.CalledProcessError: the requirements cannot be resolved.
    """
    have = read_image()
    kept = [f"{name}=={have[name]}" for name in KEPT if name in have]
    limits = [limit for torch, limit in BESIDE_TORCH.items() if have["torch"].startswith(torch)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join([*kept, *limits, *pins]) + "\n")
        file.flush()
        plan = _ask_pip(python, ["-c", file.name, *wanted()], {"PYTHONPATH": str(image)})
    return {canonicalize_name(metadata["name"]): metadata for metadata in plan}


def resolve(python: str, facts: dict[str, Any], pins: dict[str, str]) -> dict[str, str]:
    """Return the versions that ``python`` adds to the image; complete ``facts`` on the way."""
    image = read_image()
    while True:
        with tempfile.TemporaryDirectory() as folder:
            lines = [f"{name}=={version}" for name, version in pins.items()]
            found = would_install(python, make_image(Path(folder) / "image", facts), lines)
        added = {name: metadata["version"] for name, metadata in found.items()}
        facts |= {f"{n}=={added[n]}": _facts_of(metadata) for n, metadata in found.items()}
        reached = _reach(image | added, facts)
        unknown = [f"{name}=={image[name]}" for name in reached if name in image]
        unknown = [
            key for key in unknown if key not in facts and key.partition("==")[0] not in KEPT
        ]
        if not unknown:
            return added
        facts |= _look_up(python, unknown)


def _reach(versions: Mapping[str, str], facts: Facts) -> set[str]:
    """Return the names that the project needs, directly or not, whatever the markers say."""
    reached: set[tuple[str, str]] = set()
    left = [Requirement(line) for line in wanted()]
    while left:
        need = left.pop()
        name = canonicalize_name(need.name)
        for extra in ("", *need.extras):
            if (name, extra) in reached:
                continue
            reached.add((name, extra))
            lines = facts.get(f"{name}=={versions.get(name, '')}", {}).get("requires", ())
            left += [one for one in map(Requirement, lines) if _counts(one, extra)]
    return {name for name, _ in reached}


def _counts(need: Requirement, extra: str) -> bool:
    marker = str(need.marker or "")
    return f'extra == "{extra}"' in marker if extra else "extra ==" not in marker


def _facts_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "requires": metadata.get("requires_dist", []),
        "python": metadata.get("requires_python", ""),
    }


def _look_up(python: str, keys: list[str]) -> dict[str, Any]:
    """Ask the index what ``keys`` require; a version that it does not have requires nothing."""
    try:
        found = _ask_pip(python, ["--no-deps", "--ignore-installed", *keys])
    except subprocess.CalledProcessError:
        if not keys[1:]:
            return {keys[0]: {"requires": [], "python": ""}}
        return {k: v for key in keys for k, v in _look_up(python, [key]).items()}
    answer = {f"{canonicalize_name(m['name'])}=={m['version']}": _facts_of(m) for m in found}
    return {key: answer.get(key, {"requires": [], "python": ""}) for key in keys}


def _ask_pip(
    python: str, arguments: list[str], environ: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"]
    environ = {**os.environ, **(environ or {})}
    answer = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, text=True, check=True, env=environ
    )
    entries = json.loads(answer.stdout[answer.stdout.index("{") :])["install"]
    return [entry["metadata"] for entry in entries]


def _metadata(name: str, version: str, facts: Mapping[str, Any]) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    if facts.get("python"):
        lines.append(f"Requires-Python: {facts['python']}")
    needs: list[str] = facts.get("requires", [])
    extras = sorted({extra for need in needs for extra in re.findall(r'extra == "([^"]+)"', need)})
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    return "\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n"


def _drop_unused_extras(facts: Facts) -> dict[str, Any]:
    """Leave out what only extras require that nothing here asks for."""
    everything = [*wanted(), *(need for one in facts.values() for need in one["requires"])]
    asked: dict[str, set[str]] = {}
    for need in map(Requirement, everything):
        asked.setdefault(canonicalize_name(need.name), set()).update(need.extras)
    kept = {}
    for key, values in sorted(facts.items()):
        extras = ("", *sorted(asked.get(key.partition("==")[0], ())))
        needs = [
            need
            for need in values["requires"]
            if any(_counts(Requirement(need), extra) for extra in extras)
        ]
        kept[key] = {"requires": needs, "python": values["python"]}
    return kept


def main(pythons: list[str]) -> None:
    """Write the pins, for each package the version that every Python accepts, and the index."""
    pins: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for python in pythons:
        pins |= resolve(python, facts, pins)
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    CONSTRAINTS.write_text(HEADER + "".join(lines), encoding="utf-8")
    entries = _drop_unused_extras(facts).items()
    rows = [f"{json.dumps(key)}: {json.dumps(values)}" for key, values in entries]
    INDEX.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    print(f"{CONSTRAINTS}: {len(lines)} pins; {INDEX}: {len(rows)} distributions")


if __name__ == "__main__":
    main(sys.argv[1:])
