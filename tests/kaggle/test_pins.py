"""What a kernel would install on Kaggle's image as last seen, by the package index of today."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medcot.kaggle.client.sources import PROJECT
from medcot.kaggle.session.install import KEPT

HOME = Path.home()  # before a test has its own
IMAGE = json.loads((PROJECT / "kaggle" / "image.json").read_text(encoding="utf-8"))
PINS = (PROJECT / "kaggle" / "constraints.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def resolve() -> dict[str, Any]:
    return runpy.run_path(str(PROJECT / "kaggle" / "resolve.py"))


def interpreter(version: str) -> str | None:
    """A Python ``version`` of this machine that starts: a shim may stand for none."""
    pyenv = sorted((HOME / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    found = [*map(str, pyenv), *filter(None, [shutil.which(f"python{version}")])]
    starts = [p for p in found if subprocess.run([p, "-V"], capture_output=True).returncode == 0]
    return starts[0] if starts else None


def test_no_pin_touches_what_the_image_keeps() -> None:
    names = re.findall(r"^([\w.-]+)==", PINS, re.MULTILINE)
    assert len(names) > 50
    assert not {"torch", "torchvision", "torchaudio", "triton"} & set(names)
    assert not [name for name in names if name.startswith("nvidia-")]
    assert "torch" in KEPT


def test_everything_a_kernel_needs_is_pinned_or_in_the_image(resolve: dict[str, Any]) -> None:
    known = set(re.findall(r"^([\w.-]+)==", PINS, re.MULTILINE)) | set(IMAGE["packages"])
    wanted = {canonicalize_name(Requirement(line).name) for line in resolve["wanted"]()}
    assert wanted <= {canonicalize_name(name) for name in known}, "run kaggle/resolve.py"
    assert {"trl", "unsloth", "marimo", "wandb"} <= wanted


@pytest.mark.internet
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", IMAGE["python"])
def test_the_requirements_resolve_on_the_image_without_torch(
    version: str, resolve: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "internet" not in request.config.option.markexpr:
        pytest.skip("asks the package index for a minute: pytest -m internet")
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    inside = resolve["make_image"](python, tmp_path / "image")
    found = resolve["would_install"](inside, PINS)
    assert not set(KEPT[:4]) & set(found)
    assert not [name for name in found if name.startswith("nvidia-")]
    assert {"trl", "bitsandbytes", "unsloth", "marimo"} <= set(found)
    assert "transformers" in found  # the image's 5.0.0 is too old
    pinned = dict(line.split("==") for line in PINS.splitlines() if "==" in line)
    assert {name: pinned.get(name) for name in found} == found
