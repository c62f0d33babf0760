"""Send a free CPU kernel that looks at Kaggle's image, and keep what it found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.errors import RunFailed
from medcot.kaggle.client.build import FOLDER
from medcot.kaggle.client.orchestrate import KaggleRun, run_probe
from medcot.kaggle.session.install import KEPT
from medcot.kaggle.session.probe import FILE
from medcot.paths import PROJECT

IMAGE = PROJECT / "kaggle" / "image.json"
"""The image as last seen; the tests and `kaggle/resolve.py` read it."""

PLACE = f"{FOLDER}/output/{FILE}"
"""Where the facts are in the run directory."""

_NAME, _VERSION = re.compile(r"[a-z0-9][a-z0-9-]{0,99}"), re.compile(r"[\w.+!-]{1,60}")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a probe found: when, the image's Python and build, and its packages by name.

    ``hub_mb_per_s`` is the rate in 10**6 bytes per second at which the hub's files arrived.
    """

    at: str
    python: str
    build: str
    packages: Mapping[str, str]
    hub_mb_per_s: float | None = None


def probe_image(run: KaggleRun) -> tuple[ImageFacts, list[str]]:
    """Probe the image and the kernel's secrets; return the facts, and lines for the user.

    Raises:
        InputError, RunFailed: as :func:`.orchestrate.run_probe`; or what came home is not readable.
    """
    notes = run_probe(run, "probe")
    facts = read_facts(run.directory.path / PLACE)
    return facts, [*notes, *compare(facts, IMAGE)]


def read_facts(path: Path) -> ImageFacts:
    """Read the facts that a probe left.

    Raises:
        RunFailed: the file is missing or damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stamp = [str(values[name])[:80] for name in ("build_date", "git_commit") if values[name]]
        packages = {str(name): str(version) for name, version in values["packages"].items()}
        rate = None if values["hub_mb_per_s"] is None else float(values["hub_mb_per_s"])
        facts = ImageFacts(
            str(values["at"]), str(values["python"]), ", ".join(stamp), packages, rate
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunFailed("probe", f"{path} is not readable ({error}).", "Probe again.") from None
    sound = all(_NAME.fullmatch(n) and _VERSION.fullmatch(v) for n, v in packages.items())
    dated = re.fullmatch(r"\d{4}-\d\d-\d\d", facts.at)
    if not (sound and dated and re.fullmatch(r"3\.\d+\.[\w.+]{1,20}", facts.python)):
        raise RunFailed("probe", f"{path} holds names that are none.", "Probe again.")
    return facts


def compare(facts: ImageFacts, image: Path) -> list[str]:
    """Return lines on the image, and on how far it differs from the recorded ``image``."""
    shown = [f"{name} {facts.packages[name]}" for name in KEPT if name in facts.packages]
    lines = [f"image: Python {facts.python}, {', '.join([*shown, facts.build]).rstrip(', ')}"]
    if "+cpu" in facts.packages.get("torch", ""):
        lines.append("this is the image of CPU sessions: one with a GPU has another torch")
    if not image.is_file():
        return lines
    recorded: dict[str, str] = json.loads(image.read_text(encoding="utf-8"))["packages"]
    names = recorded.keys() | facts.packages.keys()
    other = [name for name in names if recorded.get(name) != facts.packages.get(name)]
    lines.append(f"{len(other)} of {len(names)} packages differ from kaggle/image.json")
    return lines


def save_image(facts: ImageFacts, image: Path = IMAGE) -> None:
    """Rewrite the recorded image by what a probe found."""
    source = f"python kaggle/push.py probe, {facts.at}" + (
        f": {facts.build}" if facts.build else ""
    )
    values: dict[str, Any] = {
        "python": [".".join(facts.python.split(".")[:2])],
        "sources": [source],
        "hub_mb_per_s": facts.hub_mb_per_s,
        "packages": dict(sorted(facts.packages.items())),
    }
    image.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
