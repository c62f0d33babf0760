"""Find what pip would install on Kaggle's image as last seen (`image.json`); install nothing.

    python kaggle/resolve.py /path/to/python3.12 /path/to/python3.13   # rewrites constraints.txt

A scratch environment gets the metadata of the image's packages without their content, so that pip
takes them for installed. This needs the package index, not Kaggle.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from medcot.kaggle.session.install import KEPT
from medcot.kaggle.session.requirements import requirements

HERE = Path(__file__).parent
CONSTRAINTS = HERE / "constraints.txt"
EXTRAS = ("gpu", "app", "track")
HEADER = (
    "# Made by resolve.py: what pip adds to Kaggle's image, for every Python that it may have.\n"
)


def make_image(python: str, folder: Path) -> Path:
    """Make an environment of ``python`` with the recorded packages; return its interpreter."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    answer = subprocess.run([inside, "-c", where], capture_output=True, text=True, check=True)
    recorded: dict[str, str] = json.loads((HERE / "image.json").read_text("utf-8"))["packages"]
    for name, version in recorded.items():
        needs = [] if name in KEPT else _needs_of(inside, name, version)
        info = Path(answer.stdout.strip()) / f"{name}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {need}" for need in needs]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    return inside


def would_install(inside: Path, pins: str = "") -> dict[str, str]:
    """Map the names of the packages that a kernel would add to the image to versions.

    ``pins`` are further lines of constraints.

    Raises:
        subprocess.CalledProcessError: the requirements cannot be resolved.
    """
    kept: dict[str, str] = json.loads((HERE / "image.json").read_text("utf-8"))["packages"]
    lines = [f"{name}=={kept[name]}" for name in KEPT if name in kept]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join([*lines, pins]) + "\n")
        file.flush()
        plan = _pip(inside, ["-c", file.name, *wanted()])
    found = {entry["metadata"]["name"]: entry["metadata"]["version"] for entry in plan}
    return {name.lower().replace("_", "-"): version for name, version in sorted(found.items())}


def wanted() -> list[str]:
    """Return the package's requirements with the extras that a GPU kernel uses."""
    lines = []
    for line in requirements():
        need, _, marker = line.partition(";")
        if "extra ==" not in marker:
            lines.append(line)
        elif any(f'extra == "{extra}"' in marker for extra in EXTRAS):
            lines.append(need.strip())
    return lines


def _needs_of(inside: Path, name: str, version: str) -> list[str]:
    [entry] = _pip(inside, ["--no-deps", "--ignore-installed", f"{name}=={version}"])
    return [need for need in entry["metadata"].get("requires_dist", []) if "extra ==" not in need]


def _pip(inside: Path, arguments: list[str]) -> list[dict]:
    command = [str(inside), "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"]
    answer = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout[answer.stdout.index("{") :])["install"]


def main(pythons: list[str]) -> None:
    """Write the pins: for each package the version that every Python accepts."""
    pins: dict[str, str] = {}
    for python in pythons:
        with tempfile.TemporaryDirectory() as folder:
            found = would_install(
                make_image(python, Path(folder) / "image"),
                "\n".join(f"{name}=={version}" for name, version in pins.items()),
            )
        pins |= found
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    CONSTRAINTS.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{CONSTRAINTS}: {len(lines)} pins")


if __name__ == "__main__":
    main(sys.argv[1:])
