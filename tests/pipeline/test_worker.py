"""Two processes on the CPU (gloo): one run directory, the training of one process, no one left."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from medcot.config.presets import make_config
from medcot.distributed import comm
from medcot.pipeline.run import run
from medcot.runs.directory import RunDirectory
from tests.support.two_processes import (
    SETTINGS,
    assert_same_training,
    finish,
    rows,
    start_two,
)

TROUBLE = """
import pathlib, sys, time
import torch
from medcot.distributed import rendezvous, comm
from medcot.engines import loading
from medcot.cli.main import main

usual = loading.add_adapter

def add_adapter(loaded, config, plan):
    usual(loaded, config, plan)
    if comm.rank() == 1:
        loaded.model.register_forward_pre_hook(trouble)

def trouble(module, arguments):
    if sys.argv[1] == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    pathlib.Path("hangs").touch()
    time.sleep(1000)

loading.add_adapter = add_adapter
rendezvous.GRACE_S = 1.0
main(sys.argv[2:])
"""


SHARED = """
import json
from tests.support.fakes import make_case
from medcot.distributed import comm
from medcot.config.presets import make_config
from medcot.evaluation.interface import ModelTools, row_to_json
from medcot.evaluation.suite import evaluate, make_suite
from medcot.records import Generation, TokenLoss
from medcot.pipeline.sharding import shard_evaluation, submit_shard

def generate(prompts):
    return [Generation(f"by process {comm.rank()}", 1, True) for _ in prompts]

tools = ModelTools(generate, lambda pairs: [TokenLoss(len(p.text), 1) for p in pairs], None)
tools = ModelTools(generate, tools.score, tools.score_options, answers_at_once=2)
if comm.is_main():
    config = make_config("demo", {"test_samples": 12, "generate_samples": 10, "style": "tutorial"})
    asked = make_suite(config, [make_case(n) for n in range(12)], None, {})
    ask = shard_evaluation(comm.broadcast, "before", lambda: False)
    whole, rest, saved = [], [], []
    evaluate(asked, tools, [], whole.append, answer=ask)
    evaluate(asked, tools, whole[:3] + whole[6:], rest.append, answer=ask)
    evaluate(asked, tools, whole, saved.append, answer=ask)
    comm.broadcast(None)
    print(json.dumps([[row_to_json(row) for row in rows] for rows in (whole, rest, saved)]))
else:
    while sharded := comm.receive():
        submit_shard(sharded, tools, lambda: False)
comm.close()
"""


@pytest.fixture
def options(tiny_model):
    values = SETTINGS | {"preset": "demo", "model": tiny_model}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    """The same training by one process."""
    directory = RunDirectory(tmp_path_factory.mktemp("alone") / "run")
    values = SETTINGS | {"model": str(tiny_model)}
    run(make_config("demo", values), directory)
    return directory


def wait_until(true, within_s=100):
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same_rows(folder, alone):
    """Of the untuned model: the tuned ones' last digits differ."""
    one, two = (rows(path / "evaluation" / "before.jsonl") for path in (alone.path, folder))
    assert len(one) > SETTINGS["test_samples"]
    for ours, theirs in zip(one, two, strict=True):
        losses = [row.pop("option_losses", None) or {} for row in (ours, theirs)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for name in ("nll", "nll_sum"):
            assert (theirs.pop(name) or 0) == pytest.approx(ours.pop(name) or 0, rel=1e-5)
        assert theirs == ours


def test_batches_are_dealt_to_processes_in_turn_and_saved_in_order(tmp_path, forks):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    started = start_two(forks, [script], tmp_path)
    (code, said, errors), other = finish(forks, started)
    assert (code, other[0]) == (0, 0), errors + other[2]
    whole, rest, saved = json.loads(said)
    by = [row["output"] and row["output"][-1] for row in whole]
    assert by == [*"0011001100", None, None]
    assert [row["id"] for row in rest] == [row["id"] for row in whole[3:6]]
    # A half-saved group is asked again, the first of these by the main process.
    assert [row["output"][-1] for row in rest] == [*"011"]
    assert saved == []


def test_two_processes_give_the_run_of_one_and_only_the_main_one_writes(
    tmp_path, options, alone, forks
):
    program = ["-m", "medcot", "run", *options, "--out", "run"]
    (code, said, errors), other = finish(forks, start_two(forks, program, tmp_path))
    assert code == 0, errors
    assert other[0] == 0, other[2]
    assert "report.md" in said
    assert other[1] == ""
    assert list((tmp_path / "process-1").iterdir()) == []
    folder = tmp_path / "process-0" / "run"
    assert json.loads((folder / "status.json").read_text())["stage"] == "done"
    assert json.loads((folder / "plan.json").read_text())["gpus"] == 2
    assert_same_training(folder, alone)
    assert_same_rows(folder, alone)
    assert sorted(p.name for p in (folder / "checkpoints" / "checkpoint-6").glob("rng*")) == [
        "rng_state_0.pth"
    ]


def test_two_processes_of_the_fused_pass_give_the_training_of_one_plain_one(
    tmp_path, options, alone, forks
):
    program = ["-m", "medcot", "train", *options, "--engine", "fused", "--out", "run"]
    (code, _, errors), other = finish(forks, start_two(forks, program, tmp_path))
    assert code == 0, errors
    assert other[0] == 0, other[2]
    folder = tmp_path / "process-0" / "run"
    assert json.loads((folder / "plan.json").read_text())["engine"] == "fused"
    assert_same_training(folder, alone)


def test_a_stop_under_torchrun_ends_all_processes_and_resume_reaches_the_same_end(
    tmp_path, options, alone, forks
):
    """The stop under torchrun itself; what it left is resumed by two processes without it."""
    folder = tmp_path / "run"
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "medcot",
    ]  # fmt: skip
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [*launcher, "train", *options, "--out", str(folder)],
        env=quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    saved = folder / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    wait_until(lambda: saved.exists() or first.poll() is not None)
    assert first.poll() is None, first.communicate()[1]
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=40)
    stage = json.loads((folder / "status.json").read_text())["stage"]
    # A tiny model may be done before the signal arrives.
    assert stage in ("cancelled", "trained")
    program = ["-m", "medcot", "train", "--resume", "--out", folder]
    (code, _, errors), other = finish(forks, start_two(forks, program, tmp_path))
    assert (code, other[0]) == (0, 0), errors + other[2]
    assert_same_training(folder, alone)


@pytest.mark.parametrize("trouble", ["memory", "hang"])
def test_a_failure_in_one_process_ends_both_and_the_main_one_says_where(
    tmp_path, options, forks, trouble
):
    script = tmp_path / "trouble.py"
    script.write_text(TROUBLE)
    program = [str(script), trouble, "train", *options, "--micro-batch=2", "--out", "run"]
    started = start_two(forks, program, tmp_path)
    if trouble == "hang":
        wait_until((tmp_path / "process-1" / "hangs").exists)
        # The main process waits for the other one's gradient by now.
        time.sleep(1)
        os.kill(started[1], signal.SIGTERM)
        time.sleep(1)
        os.kill(started[1], signal.SIGTERM)
    (code, _, errors), other = finish(forks, started)
    folder = tmp_path / "process-0" / "run"
    if trouble == "memory":
        assert (code, other[0]) == (1, 1)
        assert "process 1" in errors
        assert "--resume --micro-batch" in errors
        told = json.loads((folder / "error.json").read_text())
        assert "ran out of memory" in told["message"]
    else:
        assert (code, other[0]) == (130, 130)
        assert json.loads((folder / "status.json").read_text())["stage"] == "cancelled"
    assert "Traceback" not in errors


def test_wrong_input_is_reported_by_one_process_only(tmp_path, forks):
    program = ["-m", "medcot", "run", "--preset", "demo", "--batch", "3"]
    (code, _, errors), other = finish(forks, start_two(forks, program, tmp_path))
    assert (code, other[0]) == (2, 2)
    assert errors.count("--batch") == 1
    assert "use a multiple of 2, the number of training processes" in errors
    assert other[2] == ""


def test_commands_that_train_nothing_run_in_the_main_process_alone(tmp_path, forks):
    started = start_two(forks, ["-m", "medcot", "data"], tmp_path)
    (code, said, errors), other = finish(forks, started)
    assert (code, other[0]) == (0, 0), errors
    assert "rows" in said
    assert other[1:] == ("", "")


def test_without_a_launcher_the_store_is_never_used(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert comm.from_main(lambda: 5) == 5
    assert comm.sum_over_ranks(2.0) == 2.0
    assert comm.any_rank(True)
    assert not comm.any_rank(False)
    assert comm.peer_error() is None
    assert comm.announce_failure(2, "a line").line == "a line"
    comm.broadcast(None)
    comm.close()


def test_a_run_resumes_with_a_smaller_micro_batch(tmp_path, alone):
    from medcot.cli.main import main

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text((alone.path / "config.json").read_text())
    with pytest.raises(SystemExit) as ended:
        main(["train", "--out", str(folder), "--resume", "--micro-batch", "3"])
    # 3 is no divisor of the batch: it was heard, where another rank would have been refused.
    assert ended.value.code == 2
    main(["train", "--out", str(folder), "--resume", "--micro-batch", "1"])
    assert json.loads((folder / "plan.json").read_text())["micro_batch"] == 1
