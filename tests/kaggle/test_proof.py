"""The plan of a session, and what a first run on Kaggle writes down."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from medcot.cli.kaggle import cli, estimate_session
from medcot.config.presets import make_config
from medcot.errors import RunFailed
from medcot.hardware.machine import named_machine
from medcot.kaggle.client import orchestrate
from medcot.kaggle.client.build import build
from medcot.kaggle.client.probe import ImageFacts
from medcot.kaggle.client.proof import make_snippet, stage_seconds
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.session_plan import describe_session, plan_session
from medcot.paths import PACKAGE
from medcot.pipeline.prepare import plan_only
from medcot.runs.directory import RunDirectory
from tests.kaggle.test_probe import GOOD
from tests.support.kaggle_scripts import end_session
from tests.support.kaggle_server import KaggleServer
from tests.support.kaggle_session import Session
from tests.support.plans import LAPTOP

pytest_plugins = ["tests.support.kaggle_fixtures"]
FINISHED = PACKAGE / "runs" / "finished" / "demo-en"
LOG = """\
2026-11-27 10:00:00,100 INFO medcot.pipeline.run: begin
2026-11-27 10:00:05,100 INFO medcot.runs.directory: stage planned
2026-11-27 10:01:35,100 INFO medcot.runs.directory: stage before
2026-11-27 10:02:00,100 INFO medcot.runs.directory: stage training
2026-11-27 10:05:00,100 INFO medcot.engines.loading: another line
2026-11-27 10:06:00,100 INFO medcot.runs.directory: stage after
2026-11-27 10:06:20,100 INFO medcot.runs.directory: stage report
2026-11-27 10:06:23,100 INFO medcot.runs.directory: stage done
"""


def test_a_session_is_planned_by_stage_and_each_figure_says_what_it_rests_on() -> None:
    stages, total_s = estimate_session(make_config("kaggle-t4"))
    found = {one.stage: one for one in stages}
    assert list(found) == [
        "queue", "install", "download", "load", "quantize", "evaluate", "train", "report",
    ]  # fmt: skip
    assert total_s == sum(one.seconds for one in stages)
    assert "16.1 GB from the hub at 100 MB/s, assumed" in found["download"].source
    assert "320 GB/s (data sheet)" in found["evaluate"].source
    assert "44 minutes" in found["train"].source
    assert "without unsloth" in found["install"].source
    lines = describe_session(stages, total_s)
    assert lines[-1].startswith("in all")
    assert all(one.source in line for one, line in zip(stages, lines[:-1], strict=True))


def test_a_session_is_planned_with_the_gpus_that_train_and_with_every_seed() -> None:
    def seconds(preset: str, **changes: object) -> dict[str, float]:
        stages, _ = estimate_session(make_config(preset, changes))
        return {one.stage: one.seconds for one in stages}

    # Only Kaggle's own presets divide a batch between the two.
    both, one = seconds("kaggle-t4"), seconds("kaggle-t4", batch=7)
    assert both["train"] < one["train"]
    alone = plan_only(make_config("tutorial"), named_machine("T4"))
    assert seconds("tutorial")["train"] == pytest.approx(alone.time_s["train"])
    # Each GPU trains one seed at a time, and the losses of the others are scored.
    single, three = seconds("tutorial"), seconds("tutorial", seeds=3)
    assert three["train"] == pytest.approx(2 * single["train"], abs=0.2)
    assert three["evaluate"] == pytest.approx(1.35 * single["evaluate"], abs=0.2)


def test_a_4_bit_repository_is_shorter_to_download_and_not_quantized() -> None:
    config = make_config("kaggle-t4", {"model": "unsloth/DeepSeek-R1-Distill-Llama-8B-bnb-4bit"})
    found = {one.stage: one for one in estimate_session(config)[0]}
    assert "quantize" not in found
    assert "5.7 GB" in found["download"].source


def test_the_hubs_rate_is_the_one_that_a_probe_measured(tmp_path: Path) -> None:
    image = tmp_path / "image.json"
    image.write_text(json.dumps({"hub_mb_per_s": 50.0, "packages": {}}), encoding="utf-8")
    config = make_config("kaggle-t4", {"engine": "transformers"})
    plan = plan_only(make_config("demo"), LAPTOP)
    stages, _ = plan_session(config, plan, image)
    [download] = [one for one in stages if one.stage == "download"]
    assert download.seconds == pytest.approx(16.1e9 / 50e6, rel=0.01)
    assert "measured by a probe" in download.source


def test_the_time_of_each_stage_is_read_from_the_runs_log() -> None:
    assert stage_seconds(LOG) == {"load": 95.0, "evaluate": 45.0, "train": 240.0, "report": 3.0}
    assert stage_seconds("") == {}


def prove(session: Session) -> None:
    """The probe's output for the first version, a finished run's for the second."""
    if session.number == 1:
        end_session(session, {"probe.json": json.dumps(GOOD).encode()})
        return
    session.say("python 3.12.11, torch 2.10.0+cu128\n")
    session.say("4 CPU cores, 29 GiB; Tesla T4, 14.6 GiB, compute capability 7.5\n")
    session.say("installing: took 41 s\n")
    names = ("training.json", "plan.json", "events.jsonl", "report.json", "status.json")
    files = {f"run/{name}": (FINISHED / name).read_bytes() for name in names}
    at = datetime.now(UTC) + timedelta(seconds=50)
    files["session.json"] = json.dumps({"at": at.isoformat()}).encode()
    end_session(session, files | {"run/medcot.log": LOG.encode()})


def test_one_command_probes_runs_fetches_and_writes_the_figures_down(
    kaggle: KaggleServer, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client against the stand-in; its sessions are scripted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(orchestrate, "build", partial(build, project=project))
    kaggle.start = prove
    command = ["proof", "--preset", "demo", "--out", "proof", "--interval", "0.1"]
    cli.main(command, standalone_mode=False)
    probe, run = kaggle.calls_of("SaveKernel")
    assert not probe.get("enableGpu")
    assert run["newTitle"] == probe["newTitle"]
    text = (tmp_path / "proof" / "kaggle" / "proof.md").read_text(encoding="utf-8")
    assert text.startswith("## A run on Kaggle (2026-11-27)\n")
    assert "- 4 CPU cores, 29 GiB; Tesla T4, 14.6 GiB, compute capability 7.5" in text
    assert "- image: Python 3.12.11, 20260812-1, abc, 3 packages" in text
    assert "| install | 41 s | 60 s | assumed" in text
    assert "| download, load, quantize | 2 min |" in text
    assert "| train | 4 min |" in text
    assert re.search(r"\| queue \| [45]\d s \| 60 s \|", text)
    trained = json.loads((FINISHED / "training.json").read_text(encoding="utf-8"))
    assert f"{trained['tokens']:,} tokens in {trained['seconds']:.0f} s" in text


def test_no_figures_are_written_down_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(make_config("demo"))
    sent = PushRecord("ann/x", "0" * 64, 1, "", 1)
    facts = ImageFacts("2026-11-27", "3.12.11", "", {})
    with pytest.raises(RunFailed, match="holds no finished run"):
        make_snippet(run, sent, (), facts)
