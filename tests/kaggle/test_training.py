"""Real runs through the whole path: pushed, trained in the stand-in, followed and fetched."""

from __future__ import annotations

import html
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.config.schema import RunConfig
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.build import KernelOptions
from medcot.kaggle.client.bundle import collect
from medcot.kaggle.client.orchestrate import KaggleRun, run_on_kaggle
from medcot.kaggle.client.push_state import training_pushes
from medcot.kaggle.session.job import JobSpec
from medcot.kaggle.session.machine import make_training_command
from medcot.kaggle.session.subprocesses import ExitStatus, run_command
from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_tiny_model
from tests.support.fork_server import ForkServer
from tests.support.kaggle_scripts import Lines
from tests.support.kaggle_server import KaggleServer
from tests.support.kaggle_session import Session

pytest_plugins = ["tests.support.kaggle_fixtures"]
COMMIT = "0123456789" * 4


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A short data set in the working directory, so that it has to travel."""
    monkeypatch.chdir(tmp_path)
    with Path("rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(24):
            row = {
                "Question": f"Patient {number} has fever and a cough. What is the likely cause?",
                "Complex_CoT": f"Fever and cough in patient {number}: an infection of the airways.",
                "Response": f"Most likely infection number {number}.",
            }
            file.write(json.dumps(row) + "\n")
    return "rows.jsonl"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache that holds ``tiny/llama``."""
    home = tmp_path_factory.mktemp("hub")
    repo = home / "hub" / "models--tiny--llama"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    make_tiny_model(repo / "snapshots" / COMMIT)
    return home


def small(rows: str, **changes: Any) -> RunConfig:
    few = {"samples": 6, "test_samples": 3, "generate_samples": 1, "validation_samples": 2}
    short = {
        "mcq_samples": 2,
        "mcq_orders": 2,
        "max_new_tokens": 8,
        "batch": 2,
        "save_steps": 1,
        "mcq": ("sample",),
    }
    return make_config("demo", {**few, **short, "dataset": rows, **changes})


def start_locally(forks: ForkServer, config: RunConfig, out: Path, hub: Path | None = None) -> int:
    file = out.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(config.model_dump_json(), encoding="utf-8")
    environ = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environ |= {"OMP_NUM_THREADS": "1"} | ({"HF_HOME": str(hub)} if hub else {})
    program = ["-m", "medcot", "run", "--config", file, "--out", out]
    return forks.start_program(program, Path.cwd(), environ, draws=True)


def report(path: Path) -> dict[str, Any]:
    return json.loads((path / "report.json").read_text(encoding="utf-8"))


@pytest.mark.real_model
def test_a_run_on_kaggle_reports_what_the_same_run_reports_here(
    kaggle: KaggleServer,
    account: Account,
    run: RunDirectory,
    rows: str,
    lines: Lines,
    tmp_path: Path,
    forks: ForkServer,
) -> None:
    kaggle.start = Session.run
    config = small(rows, steps=2)
    local = start_locally(forks, config, tmp_path / "local")
    shown = Lines()
    options = KernelOptions(job=JobSpec(hub_repository="ann/tuned"))
    result = run_on_kaggle(KaggleRun(account, config, run, options, lines, shown, interval_s=0.2))
    ended = forks.wait(local, 200)
    assert ended.code == 0, ended.errors
    assert result.outcome == "done", shown.text
    assert result.exit_code == 0
    assert "hub: nothing uploaded to ann/tuned, as there is no token" in lines
    assert report(run.path) == report(tmp_path / "local")
    names = {"report.md", "events.jsonl", "adapter/adapter_model.safetensors"}
    assert all((run.path / name).exists() for name in names)
    assert run.stage() == "done"
    page = (run.path / "tutorial.html").read_text(encoding="utf-8")
    notes = run.read_json("kaggle/manifest.json")["notes"]
    assert "tutorial: exported" in notes, notes
    [loss] = re.findall(r"[\d.]+ nats per token", report(run.path)["verdict"]["sentence"])
    assert loss in page
    assert "train 2/2" in shown.text
    assert [line for line in shown if line.startswith("medcot step ")][-1].startswith(
        "medcot step 2/2 loss="
    )
    # What a visitor finds: the verdict below the log, and nothing in the output that nobody reads.
    verdict = report(run.path)["verdict"]["sentence"]
    assert shown[-1].strip() == "" or verdict in shown.text.rpartition("medcot session")[2]
    top = {name.split("/")[0] for name in kaggle.sessions()[0].names()}
    assert top == {
        "report.html", "tutorial.html", "manifest.json", "session.json", "run",
        "loss.png", "differences.png", "accuracy.png",
    }  # fmt: skip
    assert (run.path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run.path / "report.html").exists()
    assert not run.checkpoints.exists()
    assert "nothing is missing" in shown.text
    assert f"medcot bundle {training_pushes(run)[0].checksum}" in shown.text
    assert "HUGGINGFACE_TOKEN: not attached; public models only" in shown.text


def test_a_session_killed_in_training_is_continued_to_the_result_of_one_long_run(
    kaggle: KaggleServer,
    account: Account,
    run: RunDirectory,
    rows: str,
    hub: Path,
    lines: Lines,
    tmp_path: Path,
    forks: ForkServer,
) -> None:
    def in_the_middle(session: Session) -> bool:
        saved = session.output / "run" / "checkpoints" / "checkpoint-9" / "trainer_state.json"
        return session.number == 1 and saved.exists()

    config = small(rows, steps=40, model="tiny/llama", samples=12)
    kaggle.start = Session.run
    kaggle.session_options = {"environ": {"HF_HOME": str(hub)}, "kill_when": in_the_middle}
    local = start_locally(forks, config, tmp_path / "local", hub)
    shown = Lines()
    notebook = KernelOptions(kind="notebook")
    result = run_on_kaggle(
        KaggleRun(account, config, run, notebook, lines, shown, interval_s=0.2), until_done=True
    )
    ended = forks.wait(local, 200)
    assert ended.code == 0, ended.errors
    assert result.outcome == "done", shown.text
    first, second = kaggle.calls_of("SaveKernel")
    assert "kernelDataSources" not in first
    assert second["kernelDataSources"] == ["ann/medcot-fine-tuning"]
    assert [push.outcome for push in training_pushes(run)] == ["killed", "done"]
    assert "continuing from the output of session 1" in shown.text
    # The image's torchao 0.10 stands in the stand-in, too (tests/support/kaggle_image).
    assert "torchao counts as missing" in (run.path / "medcot.log").read_text(encoding="utf-8")
    assert report(run.path) == report(tmp_path / "local")
    # The last cell of the executed notebook: verdict, table, figures, answers side by side.
    page = kaggle.sessions()[-1].page.read_text(encoding="utf-8")
    last = page.rpartition("session.show()")[2]
    assert report(run.path)["verdict"]["sentence"] in html.unescape(last)
    assert last.count("<img ") >= 2
    assert '<table class="numbers">' in last
    assert '<table class="sides">' in last
    assert not re.search(r'(?:src|href)="(?!data:)', last)


def test_both_t4s_are_trained_on_by_two_processes_that_end_as_one_run(
    rows: str, hub: Path, lines: Lines, tmp_path: Path
) -> None:
    """The command for two T4s, on the CPU: two processes, gloo in place of NCCL, one report."""
    config = small(rows, steps=2, model="tiny/llama", mcq=())
    file, run = tmp_path / "two.json", RunDirectory(tmp_path / "two")
    file.write_text(config.model_dump_json(), encoding="utf-8")
    command = make_training_command(2, file, run.path, resume=False)
    environ = {**os.environ, "HF_HOME": str(hub), "OMP_NUM_THREADS": "1"}
    ended = run_command(command, lines, environ=environ, folder=tmp_path, seconds=200)
    assert ended == ExitStatus(0, stopped=False), lines.text
    assert run.stage() == "done"
    assert [row["step"] for row in run.rows(run.events)] == [1, 2]
    assert run.read_json("environment.json")["machine"]["processes"] == 2


def test_a_session_stops_in_time_saves_and_says_it_is_not_finished(
    rows: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medcot.kaggle.session.main import open_session

    config = small(rows, steps=100_000, model="tiny/llama", mcq=(), generate_samples=0)
    bundle = collect(config, JobSpec(limit_s=600, margin_s=60))
    folder, root = tmp_path / "bundle", tmp_path / "kaggle"
    for name, content in bundle.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Long enough to reach the training also where another test keeps the second core busy.
    left_s = 45
    steps = open_session(folder, root, bundle.checksum, started=time.time() - 540 + left_s)
    for step in (steps.look, steps.install, steps.train, steps.publish, steps.finish):
        step()
    manifest = json.loads((root / "working" / "manifest.json").read_text(encoding="utf-8"))
    run = RunDirectory(root / "working" / "run")
    assert (steps.outcome, manifest["outcome"], manifest["exit_code"]) == ("paused", "paused", 130)
    assert run.last_checkpoint() is not None
    assert not run.has("report.json")
