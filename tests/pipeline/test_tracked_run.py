"""A whole run whose W&B server hangs after the start: the same result, late by what is allowed."""

import time

import pytest

from medcot.config.presets import make_config
from medcot.listener import Listener
from medcot.pipeline.run import run
from medcot.runs.directory import RunDirectory
from medcot.training import wandb_run
from tests.support.short_runs import SHORT, outcome, write_rows
from tests.support.wandb_server import faulty_wandb, forget_client

pytestmark = pytest.mark.filterwarnings("ignore")


class Lines(Listener):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_server_that_hangs_changes_no_result(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setattr(wandb_run, "INIT_S", 10.0)
    monkeypatch.setattr(wandb_run, "FINISH_S", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    rows, found, seconds = write_rows(tmp_path / "rows.jsonl"), {}, {}
    options = SHORT | {"model": str(tiny_model), "dataset": str(rows), "mcq": ()}
    forget_client()
    with faulty_wandb("hang later") as (address, operations):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        for mode in ("off", "online"):
            config = make_config("demo", options | {"wandb": mode, "wandb_project": "medcot"})
            directory, heard = RunDirectory(tmp_path / mode), Lines()
            began = time.monotonic()
            run(config, directory, heard)
            found[mode], seconds[mode] = outcome(directory.path), time.monotonic() - began
    forget_client()
    assert "UpsertBucket" in operations
    assert len([line for line in heard.lines if line.startswith("W&B: ")]) == 1
    assert "report.md" in found["off"]
    assert found["online"] == found["off"]
    assert seconds["online"] < seconds["off"] + 20  # 2 s are allowed; the client starts in some
