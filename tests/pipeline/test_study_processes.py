"""A study by two processes, one of them killed: each arm is finished, and finished once."""

import json
import os
import signal
import subprocess
import sys

import pytest

from medcot.config.presets import make_config
from medcot.pipeline.study import list_arms
from medcot.runs.directory import RunDirectory
from tests.support.short_runs import SHORT, write_rows

optuna = pytest.importorskip("optuna")
VARY = {"rank": [2, 4], "alpha": [4, 8], "learning_rate": [1e-2, 1e-3]}


def arms_of(lines, end):
    """The arms that lines of output tell of: that they begin or, with ``end``, are done."""
    told = [line.removeprefix("arm ").rstrip() for line in lines if line.startswith("arm ")]
    return [line.partition(": ")[0] for line in told if (": " in line) == end]


def test_of_eight_arms_of_two_processes_one_of_them_killed_each_is_finished_once(
    tiny_model, tmp_path
):
    if not os.environ.get("PROCESSES"):
        pytest.skip("PROCESSES=1 runs it: two processes import PyTorch and train eight arms")
    rows = write_rows(tmp_path / "rows.jsonl")
    options = SHORT | {
        "model": str(tiny_model), "dataset": str(rows), "steps": 2, "mcq_samples": 1,
    }  # fmt: skip
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    lines += ["[vary]", *(f"{name} = {json.dumps(values)}" for name, values in VARY.items())]
    file, folder = tmp_path / "study.toml", tmp_path / "study"
    file.write_text("\n".join(['preset = "demo"', *lines]), encoding="utf-8")
    command = [sys.executable, "-m", "medcot", "study", str(file), "--out", str(folder)]
    first, second = (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    )
    killed = []
    for line in first.stdout:
        killed.append(line)
        # It is killed in the middle of its second arm.
        if len(arms_of(killed, end=False)) == 2 and line.startswith("train"):
            first.send_signal(signal.SIGKILL)
            break
    lived = second.communicate(timeout=500)[0].splitlines()
    assert first.wait() == -signal.SIGKILL, killed
    assert second.returncode == 0, lived
    first.stdout.close()
    names = [arm.name for arm in list_arms(make_config("demo", options), VARY)]
    assert len(names) == 8
    assert sorted([*arms_of(killed, end=True), *arms_of(lived, end=True)]) == sorted(names)
    assert arms_of(killed, end=False)[1] in arms_of(lived, end=False)
    books = optuna.load_study(study_name="medcot", storage=f"sqlite:///{folder / 'study.db'}")
    assert sorted(trial.user_attrs["arm"] for trial in books.trials) == sorted(names)
    report = json.loads((folder / "study_report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == names
    for name in names:
        arm = RunDirectory(folder / "arms" / name)
        assert arm.stage() == "done"
        assert [row["step"] for row in arm.rows(arm.events)] == [1, 2]
