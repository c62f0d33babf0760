"""Planted tokens, through every surface that shows or keeps something: none is found."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest

from medcot.cli.kaggle import main as push_py
from medcot.cli.main import main as medcot
from medcot.config.presets import make_config
from medcot.credentials import take_judge_login
from medcot.engines import loading
from medcot.evaluation.judge import connect
from medcot.kaggle.client.bundle import read_script
from medcot.notebook import static_site
from medcot.runs.directory import RunDirectory
from tests.support.network_trace import can_trace, hosts_beyond_this_machine, traced
from tests.support.paths import ROOT

HUB, FORMER_HUB = "hf_Planted0123456789abcdefghij", "hf_Former0123456789abcdefghijk"
WANDB, OPENAI = "0123456789planted0123456789planted012345", "sk-planted-0123456789-abcdefgh"
KAGGLE, KAGGLE_FILE = "planted0key0123456789abcdef01234", "planted0file0123456789abcdef0123"
PASSWORD = "pass/word of the judge"
PLANTED = (HUB, FORMER_HUB, WANDB, OPENAI, KAGGLE, KAGGLE_FILE, PASSWORD)

OPTIONS = (
    "--preset demo --samples 8 --steps 1 --batch 2 --test-samples 2 --generate-samples 1"
    " --max-new-tokens 4 --mcq sample --mcq-samples 2"
)
SMALL = OPTIONS.split()


@pytest.fixture(autouse=True)
def planted(scratch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every login this project knows: in variables, some with a line feed, and in files."""
    for name, value in {
        "HF_TOKEN": f"{HUB}\n",
        "HUGGINGFACE_TOKEN": FORMER_HUB,
        "WANDB_API_KEY": f" {WANDB}\n",
        "OPENAI_API_KEY": OPENAI,
        "KAGGLE_USERNAME": "ann",
        "KAGGLE_KEY": KAGGLE,
        "MEDCOT_JUDGE_LOGIN": "",
    }.items():
        monkeypatch.setenv(name, value)
    (scratch_home / ".kaggle").mkdir()
    account = json.dumps({"username": "ann", "key": KAGGLE_FILE})
    (scratch_home / ".kaggle" / "kaggle.json").write_text(account, encoding="utf-16")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where everything is written, apart from the home that holds the logins."""
    made = tmp_path / "work"
    made.mkdir()
    with chdir(made):
        yield made


@pytest.fixture
def judge() -> Iterator[str]:
    """An endpoint that refuses each request and quotes its headers; the address with a login."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = json.dumps({"error": {"message": f"bad: {self.headers['Authorization']}"}})
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://ann:{quote(PASSWORD, safe='')}@127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def spellings(value: str) -> set[str]:
    whole = base64.b64encode(value.encode()).decode()
    return {value, quote(value, safe=""), json.dumps(value)[1:-1], whole[:-4]}


def found_in(content: str | bytes) -> list[str]:
    data = content.encode() if isinstance(content, str) else content
    return [value for value in PLANTED if any(form.encode() in data for form in spellings(value))]


def assert_none_written(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert {str(path): found for path in files if (found := found_in(path.read_bytes()))} == {}


def call(main: object, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code of a command, and all it printed."""
    code = 0
    try:
        main(list(arguments))  # type: ignore[operator]
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capfd.readouterr()
    return code, shown.out + shown.err


def test_an_offline_run_with_a_judge_and_tracking_shows_and_keeps_none(
    folder: Path, judge: str, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a process, because W&B's client keeps the command line; the judge is on loopback."""
    options = [*SMALL, "--model", str(tiny_model), "--wandb", "online"]
    command = [sys.executable, "-m", "medcot", "run", *options, "--out", "run"]
    command += ["--judge-url", judge, "--judge-model", "m"]
    log = tmp_path / "network.log"
    # Earlier tests of this process may have started W&B's service, which the run would then use.
    environ = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run(
        traced(log, *command) if can_trace() else command,
        env=environ | {"PYTHONPATH": str(ROOT), "MEDCOT_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert found_in(done.stdout + done.stderr) == []
    assert "MEDCOT_OFFLINE is on, so the run is kept offline in run/wandb." in done.stdout
    if can_trace():
        assert hosts_beyond_this_machine(log) == set()
    assert json.loads(Path("run/config.json").read_text(encoding="utf-8"))["judge_url"]
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
    for again in (["report", "--run", "run"], ["plan", "--json", *options], ["doctor", "--json"]):
        code, shown = call(medcot, capfd, *again)
        assert code == 0, shown
        assert found_in(shown) == []
    assert_none_written(folder)


def test_a_run_that_a_library_ends_shows_and_keeps_none(
    folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def quote_the_header(*_: object) -> None:
        print("request headers:", {"Authorization": f"Bearer {HUB}"})
        print(f"wandb: {WANDB} is no key", file=sys.stderr)
        logging.getLogger("httpx").warning(
            "POST https://ann:%s@host/ failed", quote(PASSWORD, safe="")
        )
        raise ValueError(f"Illegal header value b'Bearer {HUB}\\n' (x-key: {OPENAI})")

    monkeypatch.setenv("MEDCOT_JUDGE_LOGIN", f"ann:{PASSWORD}")
    monkeypatch.setattr(loading, "load_base", quote_the_header)
    code, shown = call(medcot, capfd, "run", *SMALL, "--model", str(tiny_model), "--out", "run")
    assert code == 1
    assert "Illegal header value" in shown
    assert "[hidden: HF_TOKEN]" in shown
    assert found_in(shown) == []
    assert "Illegal header value" in Path("run/error.json").read_text(encoding="utf-8")
    assert Path("run/medcot.log").exists()
    assert_none_written(folder)


@pytest.mark.parametrize("key", [OPENAI, ""], ids=["key", "login"])
def test_a_judge_that_quotes_its_headers_is_kept_without_them(
    key: str, folder: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai

    monkeypatch.setenv("OPENAI_API_KEY", key)
    ask = connect(take_judge_login(judge), "m")
    with pytest.raises(openai.OpenAIError) as refused:
        ask("Which is better?")
    assert "bad: B" in str(refused.value)
    directory = RunDirectory("run")
    directory.create(make_config("demo", {"judge_url": judge, "judge_model": "m"}))
    directory.write_json("report.json", {"judge": str(refused.value)})
    assert "[hidden: " in Path("run/report.json").read_text(encoding="utf-8")
    assert_none_written(folder)


def test_a_traceback_shows_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError(f"token={HUB}")

    monkeypatch.setattr("medcot.cli.doctor.examine_machine", fail)
    code, shown = call(medcot, capfd, "doctor")
    assert code == 1
    assert "RuntimeError" in shown
    assert found_in(shown) == []


def test_a_kernel_and_what_builds_it_have_none(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, shown = call(push_py, capfd, "build", "--preset", "demo", "--out", "run", "--json")
    assert code == 0, shown
    assert found_in(shown) == []
    script = (folder / "run" / "kaggle" / "kernel" / "kernel.py").read_text(encoding="utf-8")
    assert [name for name, text in read_script(script).items() if found_in(text)] == []
    assert_none_written(folder)


def test_the_static_site_has_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*_: object) -> str:
        return f"<p>Illegal header value b'Bearer {HUB}' {quote(FORMER_HUB)}</p>"

    for name in ("make_served_page", "make_single_file"):
        monkeypatch.setattr(static_site, name, lambda page, _: page)
    monkeypatch.setattr(static_site, "_execute", execute)
    monkeypatch.setattr(static_site, "_require_done", lambda _: None)
    monkeypatch.setattr(static_site, "_copy_assets", lambda _: None)
    pages = static_site.build_site(folder / "site", RunDirectory("run").path)
    assert all("[hidden: " in page.read_text(encoding="utf-8") for page in pages)
    assert_none_written(folder)


def test_the_notebook_as_a_script_shows_none(folder: Path) -> None:
    """A value may be a token by mistake; the error repeats the value."""
    command = [sys.executable, str(ROOT / "apps" / "tutorial.py"), "--", "--headless"]
    done = subprocess.run(
        [*command, "--preset", "demo", "--rank", HUB, "--out", "run"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "[hidden: " in done.stderr
    assert found_in(done.stdout + done.stderr) == []
