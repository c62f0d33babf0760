"""What serving refuses before it listens, where the token comes from, and how it ends."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from medcot.config.presets import make_config
from medcot.credentials import SERVE_TOKEN
from medcot.errors import InputError, RunFailed
from medcot.network import open_socket
from medcot.runs.directory import RunDirectory
from medcot.serving import workflow
from medcot.serving.access import decide_access
from medcot.serving.backends import Backend
from medcot.serving.target import Target, open_export, open_run
from medcot.serving.workflow import ServeOptions, serve
from tests.support.paths import ROOT

STUB = ROOT / "tests" / "support" / "stub_model_server.py"
GOOD = "a token of more than sixteen letters"


@pytest.fixture
def target(tmp_path):
    directory = RunDirectory(tmp_path / "flu")
    directory.create(make_config("demo", {"style": "tutorial"}))
    return Target("run", directory.path, directory, directory.config())


@pytest.fixture
def stubbed(monkeypatch):
    """Lets the stub serve in place of a model."""

    def use(*words):
        monkeypatch.setattr(
            workflow,
            "choose_backend",
            lambda _target, folder, _name: Backend(
                "stub", (sys.executable, str(STUB), str(folder / "s"), *words), folder / "s"
            ),
        )

    use()
    return use


def refused(target, *arguments, **options):
    with pytest.raises(InputError) as stopped:
        serve(target, ServeOptions(*arguments, **options), say=print)
    return str(stopped.value)


def test_a_network_without_an_explicit_token_is_refused(target):
    assert "a network could reach the model without a token" in refused(target, "0.0.0.0", 0)


def test_offline_it_listens_on_loopback_only(target, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCOT_OFFLINE", "1")
    monkeypatch.setenv(SERVE_TOKEN, GOOD)
    assert "MEDCOT_OFFLINE is on" in refused(target, "0.0.0.0", 0)


def test_a_port_that_is_taken_is_one_line(target):
    with open_socket("127.0.0.1", 0, served="a test", has_token=False) as taken:
        taken.listen()
        assert "choose another" in refused(target, port=taken.getsockname()[1])


def test_a_run_without_an_adapter_is_refused(target):
    with pytest.raises(InputError, match="the run has no adapter; train it first"):
        open_run(target.directory)


def test_a_token_that_can_be_guessed_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(SERVE_TOKEN, "secret")
    with pytest.raises(InputError, match=f"{SERVE_TOKEN}: found 6 characters"):
        decide_access(None)
    (tmp_path / "token").write_text("short")
    with pytest.raises(InputError, match="at least 16 random"):
        decide_access(tmp_path / "token")


def test_the_token_comes_from_the_file_the_environment_or_is_new(monkeypatch, tmp_path):
    made, again = decide_access(None), decide_access(None)
    assert len(made.token) > 40
    assert made.token != again.token
    assert not made.given
    monkeypatch.setenv(SERVE_TOKEN, f" {GOOD}\n")
    found = decide_access(None)
    assert (found.token, found.given) == (GOOD, True)
    file = tmp_path / "token"
    written = decide_access(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == f"{written.token}\n"
    assert decide_access(file) == written
    assert written.token not in repr(written)
    with pytest.raises(InputError, match="No such file"):
        decide_access(tmp_path / "none" / "token")


def test_a_model_server_that_ends_is_told_with_its_last_line(target, stubbed):
    stubbed("fails")
    with pytest.raises(RunFailed, match="stub ended: no room for the model"):
        serve(target, ServeOptions(port=0), say=print)


def test_a_program_is_told_where_the_model_answers(target, stubbed, monkeypatch):
    monkeypatch.setattr(workflow, "_answer", lambda *_: None)
    said, facts = [], []
    serve(target, ServeOptions(port=0), said.append, announce=facts.append)
    assert facts[0]["model"] == target.name
    assert facts[0]["address"].startswith("http://127.0.0.1:")
    assert not any(facts[0]["token"] in line for line in said)


EMPTY = json.dumps(
    {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
        "post_processor": None, "decoder": None, "truncation": None, "padding": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
)  # fmt: skip

DRIVER = """
import sys
from pathlib import Path
from medcot.cli.exit_codes import exit_on_error
from medcot.runs.directory import RunDirectory
from medcot.serving import workflow
from medcot.serving.backends import Backend
from medcot.serving.target import Target

stub, run, *slow = sys.argv[1:]
workflow.choose_backend = lambda target, folder, name: Backend(
    "stub", (sys.executable, stub, str(folder / "s")), folder / "s")
directory = RunDirectory(Path(run))
target = Target("run", directory.path, directory, directory.config())
target.__dict__.update(context=9000)
type(target).encode = lambda *_: [1]
with exit_on_error():
    workflow.serve(target, workflow.ServeOptions(port=0), lambda line: print(line, flush=True))
"""


def test_an_interrupt_in_the_middle_of_an_answer_ends_everything_at_once(target):
    (target.directory.path / "adapter").mkdir()
    for name, content in (("tokenizer_config.json", "{}"), ("tokenizer.json", EMPTY)):
        (target.directory.path / "adapter" / name).write_text(content)
    command = [sys.executable, "-c", DRIVER, str(STUB), str(target.directory.path)]
    environment = {**os.environ, SERVE_TOKEN: GOOD, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        told = ""
        while "medical advice" not in told:
            told += process.stdout.readline()
        assert GOOD not in told
        url = told.partition("base URL ")[2].partition(",")[0]
        body = {"messages": [{"role": "user", "content": "slowly"}], "stream": True}
        headers = {"Authorization": f"Bearer {GOOD}"}
        with (
            httpx.Client(trust_env=False) as client,
            client.stream("POST", f"{url}/chat/completions", json=body, headers=headers) as answer,
        ):
            next(answer.iter_lines())
            (child,) = map(
                int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            )
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        assert time.monotonic() - start < 3
        assert not Path(f"/proc/{child}").exists()


DIGEST = hashlib.sha256(hashlib.sha256(b"{}").digest() + hashlib.sha256(b"").digest()).hexdigest()
"""Of the adapter that ``with_adapter`` writes."""


@pytest.fixture
def with_adapter(target):
    target.adapter.mkdir()
    (target.adapter / "adapter_config.json").write_text("{}")
    (target.adapter / "adapter_model.safetensors").write_bytes(b"")
    return target


def write_export(folder, **changes):
    """An export with a proof, as far as serving reads it."""
    folder.mkdir(parents=True)
    part = {
        "name": "merged", "outcome": "same", "sentence": "fine", "findings": [], "loss": None,
        "tolerance": None, "program": "", "computed_in": "", "rows": [], "answers": [],
    }  # fmt: skip
    part |= {name: value for name, value in changes.items() if name in part}
    proof = {
        "schema_version": 1, "format": changes.get("format", "merged"),
        "made_from": {"adapter": changes.get("adapter", DIGEST)},
        "files": changes.get("files", {}), "parts": [part],
    }  # fmt: skip
    (folder / "proof.json").write_text(json.dumps(proof))
    return folder


def test_an_export_is_served_as_its_run(with_adapter):
    target = with_adapter
    folder = write_export(target.directory.path / "export" / "merged")
    found = open_export(folder, None)
    assert (found.kind, found.path, found.name) == ("merged", folder, "flu")


def test_an_export_that_is_broken_changed_or_unknown_is_refused(with_adapter, tmp_path):
    target = with_adapter
    place = target.directory.path / "export"
    broken = write_export(place / "gguf", outcome="broken", sentence="Its end token is missing.")
    with pytest.raises(InputError, match="this export is broken: Its end token is missing"):
        open_export(broken, None)
    changed = write_export(place / "merged", files={"a": {"bytes": 1, "sha256": "0"}})
    with pytest.raises(InputError, match="not those that were proved"):
        open_export(changed, None)
    with pytest.raises(InputError, match=r"no readable proof\.json"):
        open_export(tmp_path, None)
    apart = write_export(tmp_path / "a" / "b" / "merged")
    with pytest.raises(InputError, match="add --run DIR"):
        open_export(apart, None)
    assert open_export(apart, target.directory).name == "flu"
    other = write_export(place / "adapter", adapter="of another training")
    with pytest.raises(InputError, match="made from another adapter than that of"):
        open_export(other, None)
