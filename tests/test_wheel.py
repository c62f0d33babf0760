"""The built wheel, without the repository: the notebook and the way to Kaggle are in it."""

import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
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

pytestmark = pytest.mark.checkout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built, tmp_path_factory):
    """The wheel, unpacked into a folder that nothing else is in."""
    site = tmp_path_factory.mktemp("site")
    [made] = built.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(site)
    return site


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
    # The upload of the release workflow refuses newer ones.
    assert told["Metadata-Version"] == "2.4"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["License-Expression"] == "Apache-2.0"
    page = told.get_payload()
    assert page.startswith("# medcot")
    # The index has no files beside the page.
    assert [one for one in re.findall(r"\]\(([^)]*)\)", page) if not one.startswith("http")] == []
    assert "Installing has the extras" in page
    assert (wheel / "medcot" / "py.typed").is_file()


def test_the_page_on_the_index_leads_to_the_files_of_its_version():
    hook = runpy.run_path(str(ROOT / ".ci" / "index_readme.py"))["place_links"]
    text = "![a picture](docs/a.svg) [words](docs/b.md#part) [site](https://a.org) [here](#there)"
    assert hook(text, "https://a.org/m", "v1") == (
        "![a picture](https://a.org/m/raw/v1/docs/a.svg)"
        " [words](https://a.org/m/blob/v1/docs/b.md#part) [site](https://a.org) [here](#there)"
    )
    assert hook(text, None, "v1") == " words [site](https://a.org) [here](#there)"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_source_distribution_is_the_repository(built):
    [made] = built.glob("*.tar.gz")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    tracked = {one for one in listed if (ROOT / one).is_file()}
    with tarfile.open(made) as archive:
        packed = {one.name.partition("/")[2] for one in archive if one.isfile()}
    assert tracked - packed == set()


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
