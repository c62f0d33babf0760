"""Seeds on several GPUs: which process gets which, what it shows, and how it ends."""

import json
import os
import sys
import time
from dataclasses import replace

import pytest

from medcot.catalog import Message
from medcot.config.presets import make_config
from medcot.errors import Cancelled, RunFailed
from medcot.hardware.machine import named_machine
from medcot.listener import Listener
from medcot.pipeline import seed_processes
from medcot.pipeline.seed_processes import (
    list_gpus,
    share_cores,
    train_command,
    train_in_processes,
)
from medcot.runs.directory import RunDirectory

STEPS = 2
TRAINING = f"""
import json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
begun = time.time()
for step in range(1, {STEPS} + 1):
    time.sleep(0.1)
    row = dict(step=step, steps={STEPS}, loss=2.0, learning_rate=1e-3, grad_norm=1.0, tokens=10,
               tokens_per_second=1.0, memory_gib=1.0, eta_s=0.1)
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
names = [name for name in os.environ if name.startswith("MEDCOT_")]
seen = dict(gpu=os.environ["CUDA_VISIBLE_DEVICES"], names=names, span=[begun, time.time()])
(run / "seen.json").write_text(json.dumps(seen))
"""
"""Trains nothing, but looks like it."""


@pytest.fixture
def directories(tmp_path, monkeypatch):
    monkeypatch.setattr(seed_processes, "POLL_S", 0.02)
    made = [RunDirectory(tmp_path / "seeds" / str(number)) for number in (1, 2, 3)]
    for one in made:
        one.create(make_config("demo", {"seed": 5}))
    return made


class Hearing(Listener):
    def __init__(self, stop_after=None):
        self.steps, self.stop_after = [], stop_after

    def event(self, event):
        self.steps.append((event.step, event.steps))

    def should_stop(self):
        return self.stop_after is not None and len(self.steps) >= self.stop_after


def on(*gpus):
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]


def program(text):
    """Like medcot itself it takes SIGTERM for Ctrl-C."""
    hears = "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    return lambda directory: [sys.executable, "-S", "-c", hears + text, str(directory.path)]


def test_each_training_has_a_gpu_of_its_own_and_all_steps_are_one_count(directories, monkeypatch):
    monkeypatch.setenv("MEDCOT_SEEDS", "3")
    monkeypatch.setenv("MEDCOT_OFFLINE", "1")
    listener = Hearing()
    train_in_processes(directories, on("4", "7"), listener, program(TRAINING))
    seen = [json.loads((one.path / "seen.json").read_text()) for one in directories]
    assert [one["gpu"] for one in seen[:2]] == ["4", "7"]
    assert seen[2]["gpu"] in ("4", "7")
    for one in seen[:2]:
        if one["gpu"] == seen[2]["gpu"]:
            assert one["span"][1] <= seen[2]["span"][0]
    assert sorted(seen[0]["names"]) == ["MEDCOT_CACHE", "MEDCOT_OFFLINE"]
    assert listener.steps == [(step, 3 * STEPS) for step in range(1, 3 * STEPS + 1)]


def test_a_training_that_fails_ends_the_others_and_says_why(directories):
    failing = (
        "import json, sys, time; n = sys.argv[1][-1]\n"
        "if n == '2':\n"
        "    print('out of luck'); sys.exit(1)\n"
        "time.sleep(60)"
    )
    begun = time.monotonic()
    with pytest.raises(RunFailed, match="out of luck"):
        train_in_processes(directories, on("0", "1"), Hearing(), program(failing))
    assert time.monotonic() - begun < 30
    facts = {"stage": "training", "message": "the loss became nan.", "remedy": "Start anew."}
    directories[1].write_json("error.json", facts)
    with pytest.raises(RunFailed, match="the loss became nan"):
        train_in_processes(directories, on("0", "1"), Hearing(), program(failing))


def test_a_stop_reaches_every_training_which_may_save_its_work(directories):
    patient = TRAINING + (
        "\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    (run / 'saved').touch(); sys.exit(130)\n"
    )
    with pytest.raises(Cancelled):
        train_in_processes(directories[:2], on("0", "1"), Hearing(2 * STEPS), program(patient))
    assert all((one.path / "saved").exists() for one in directories[:2])


def test_gpus_are_those_that_this_process_may_use():
    two = named_machine("2xT4")
    assert list_gpus(two, {}) == on("0", "1")
    assert list_gpus(two, {"CUDA_VISIBLE_DEVICES": "3, 5"}) == on("3", "5")
    assert train_command(RunDirectory("run"))[1:4] == ["-m", "medcot", "train"]
    assert "MEDCOT_SEEDS" not in os.environ
    values = {"folder": "f", "code": 1, "last": "x"}
    assert "code 1" in str(Message("error_seed_ended", values))


@pytest.mark.parametrize(
    ("cores", "at_once", "allowed", "threads"),
    [
        (8, 3, "", ["2", "2", "2"]),
        (2, 3, "", ["1", "1", "1"]),
        (8, 2, "4", ["2", "2"]),
        (8, 2, "many", ["4", "4"]),
        (8, 3, "1", [None]),
    ],
)
def test_cores_are_shared_within_what_the_user_allows(cores, at_once, allowed, threads):
    machine = replace(named_machine("T4"), gpus=(), cpu_cores=cores, processes=1)
    places = share_cores(machine, at_once, {"OMP_NUM_THREADS": allowed})
    assert [place.get("OMP_NUM_THREADS") for place in places] == threads
