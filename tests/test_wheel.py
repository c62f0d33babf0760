"""The built wheel, without the repository: the notebook and the way to Kaggle are in it."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from email import message_from_string

import pytest

from medcot import __version__
from medcot.config.schema import build_config
from medcot.kaggle.client.bundle import collect
from medcot.kaggle.session.job import JobSpec
from medcot.paths import CARRIED, PROJECT
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked into a folder that nothing else is in."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [made] = folder.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def start(wheel, folder, *arguments):
    """Start a command of the installed wheel in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(wheel), "KAGGLE_USERNAME": "ann"}
    return subprocess.Popen(
        [sys.executable, "-m", "medcot", *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def read_page(address, seconds=60):
    """Return a page of a server that says where it is a little before it listens."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=seconds) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_the_wheel_carries_all_that_its_commands_need_of_a_checkout(wheel):
    carried = wheel / "medcot" / CARRIED
    found = {one.relative_to(carried).as_posix() for one in carried.rglob("*") if one.is_file()}
    apps = {f"apps/{one.name}" for one in (ROOT / "apps").iterdir() if one.is_file()}
    kaggle = {f"kaggle/{name}" for name in ("constraints.txt", "image.json", "kernel.py")}
    assert found == {"pyproject.toml"} | apps | kaggle
    assert PROJECT == ROOT


def test_the_index_is_told_what_this_is(wheel):
    [metadata] = wheel.glob("medcot-*.dist-info/METADATA")
    told = message_from_string(metadata.read_text(encoding="utf-8"))
    assert told["Version"] == __version__
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["License-Expression"] == "Apache-2.0"
    assert told.get_payload().startswith("# medcot")
    assert (wheel / "medcot" / "py.typed").is_file()


def test_a_kernel_built_from_the_wheel_is_the_one_that_a_clone_builds(wheel, tmp_path):
    built = start(wheel, tmp_path, "kaggle", "build", "--preset", "demo", "--out", "run")
    said = built.communicate()[0]
    assert built.returncode == 0, said
    assert "medcot kaggle run --out run" in said
    script = (tmp_path / "run" / "kaggle" / "kernel" / "kernel.py").read_text()
    checksum = re.search(r'^CODE = "([0-9a-f]{64})"$', script, re.MULTILINE)[1]
    config = build_config(json.loads((tmp_path / "run" / "config.json").read_text()))
    assert checksum == collect(config, JobSpec()).code_checksum


def test_the_installed_notebook_answers(wheel, tmp_path):
    with start(wheel, tmp_path, "app", "--headless", "--port", "0") as server:
        try:
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = server.stdout.readline()
                assert line, said
                said += line
            assert "tutorial.py" in read_page(found[0])
        finally:
            server.terminate()
