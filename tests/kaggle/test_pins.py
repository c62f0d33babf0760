"""What a kernel would install on Kaggle's image as last seen: by what is recorded, or by today."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packaging
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medcot.kaggle.client.sources import PROJECT
from medcot.kaggle.session.install import KEPT, OPTIONAL

HOME = Path.home()  # before a test has its own
IMAGE = json.loads((PROJECT / "kaggle" / "image.json").read_text(encoding="utf-8"))
PINS = (PROJECT / "kaggle" / "constraints.txt").read_text(encoding="utf-8")
PINNED = dict(line.split("==") for line in PINS.splitlines() if "==" in line)


@pytest.fixture(scope="module")
def resolve() -> dict[str, Any]:
    return runpy.run_path(str(PROJECT / "kaggle" / "resolve.py"))


def interpreter(version: str) -> str:
    """A Python ``version`` of this machine that starts: a shim may stand for none."""
    pyenv = sorted((HOME / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    found = [*map(str, pyenv), *filter(None, [shutil.which(f"python{version}")])]
    starts = [p for p in found if subprocess.run([p, "-V"], capture_output=True).returncode == 0]
    if not starts:
        pytest.skip(f"no Python {version} here")
    return starts[0]


def test_no_pin_touches_what_the_image_keeps() -> None:
    assert len(PINNED) > 40
    assert not {"torch", "torchvision", "torchaudio", "triton", "numpy"} & set(PINNED)
    assert not [name for name in PINNED if name.startswith("nvidia-")]


def test_torchao_is_the_one_for_the_images_torch() -> None:
    """torchao 0.18 is compiled for torch 2.11, and pip cannot know."""
    older = IMAGE["packages"]["torch"].startswith("2.10.")
    assert not older or PINNED["torchao"].startswith("0.17.")


def test_everything_a_kernel_needs_is_pinned_or_in_the_image(resolve: dict[str, Any]) -> None:
    wanted = {canonicalize_name(Requirement(line).name) for line in resolve["wanted"]()}
    assert wanted <= PINNED.keys() | IMAGE["packages"].keys(), "run kaggle/resolve.py"
    assert {"trl", "unsloth", "marimo", "wandb"} <= wanted
    assert len(IMAGE["packages"]) > 700
    assert all("==" in key for key in resolve["read_index"]())


KERNEL = """
import json, sys
from pathlib import Path
from medcot.kaggle.session import install
from medcot.kaggle.session.requirements import requirements
extras, unused = ["gpu", "app", "track"], json.loads(sys.argv[1])
install.check_kept(requirements(), extras, print)
wanted = install.find_missing(requirements(), extras, unused=unused)
pins = Path(sys.argv[2]).read_text()
print(json.dumps(install.plan_installation(wanted, pins, Path(sys.argv[3]), print)))
"""
"""What `steps` and the probe do in a kernel, without installing."""

Install = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kernel(resolve: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Run :data:`KERNEL` in the simulated image: metadata alone, and an index without a network.

    For each pinned package the index also has a version 9999, which a kernel must not choose.
    """
    root = tmp_path_factory.mktemp("kaggle-image")
    index = resolve["read_index"]()
    pinned = {f"{name}=={version}" for name, version in PINNED.items()}
    facts = {key: index[key] for key in pinned}
    newer = {f"{name}==9999": {"requires": [], "python": ""} for name in PINNED}
    wheels = resolve["make_wheels"](root / "wheels", facts | newer)
    image = resolve["make_image"](root / "image", index)
    (root / "modules").mkdir()
    (root / "modules" / "packaging").symlink_to(Path(packaging.__file__).parent)

    def run(
        python: str, unused: tuple[str, ...] = OPTIONAL, torch: str = ""
    ) -> subprocess.CompletedProcess[str]:
        folders = [image, root / "modules", PROJECT]
        if torch:
            other = root / f"torch-{torch}"
            info = other / f"torch-{torch}.dist-info"
            info.mkdir(parents=True, exist_ok=True)
            text = f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n"
            (info / "METADATA").write_text(text, encoding="utf-8")
            folders.insert(0, other)
        environ = {name: value for name, value in os.environ.items() if "PIP_" not in name} | {
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
        }
        pins = PROJECT / "kaggle" / "constraints.txt"
        arguments = [json.dumps(unused), str(pins), str(root)]
        command = [python, "-c", KERNEL, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)

    return run


def added(answer: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found is not None, answer.stdout
    return dict(line.split("==") for line in found)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("version", "torch", "unused"), [("3.12", "", OPTIONAL), ("3.13", "2.11.0+cu128", ())]
)
def test_a_run_installs_on_the_whole_image_at_the_pins_without_a_network(
    version: str, torch: str, unused: tuple[str, ...], kernel: Install
) -> None:
    """A fused run on August 2026's image, and one that imports unsloth on a newer one."""
    answer = kernel(interpreter(version), unused, torch)
    found = added(answer)
    assert "outside of" not in answer.stdout
    assert not set(KEPT) & set(found)
    assert {name: PINNED.get(name) for name in found} == found
    assert {"transformers", "trl", "marimo", "bitsandbytes"} <= set(found)
    # The image's own torchao stays in a fused run: medcot takes it for missing.
    of_unsloth = {"unsloth", "unsloth-zoo", "torchao"}
    assert of_unsloth & set(found) == (set() if unused else of_unsloth)


def test_an_image_with_too_old_a_torch_is_named_and_nothing_is_resolved(kernel: Install) -> None:
    answer = kernel(interpreter("3.12"), torch="2.9.1+cu126")
    assert answer.returncode == 1
    assert "the image's torch 2.9.1+cu126 is outside of <2.15,>=2.10" in answer.stderr
    assert "choose a newer image" in answer.stderr


@pytest.mark.internet
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", IMAGE["python"])
def test_the_requirements_resolve_on_the_image_by_the_package_index(
    version: str, resolve: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "internet" not in request.config.option.markexpr:
        pytest.skip("asks the package index for minutes: pytest -m internet")
    python = interpreter(version)
    image = resolve["make_image"](tmp_path / "image", resolve["read_index"]())
    plan = resolve["would_install"](python, image, PINS.splitlines())
    found = {name: metadata["version"] for name, metadata in plan.items()}
    assert not set(KEPT) & set(found)
    assert not [name for name in found if re.match("nvidia-", name)]
    assert {"trl", "bitsandbytes", "unsloth", "marimo", "transformers"} <= set(found)
    assert {name: PINNED.get(name) for name in found} == found
