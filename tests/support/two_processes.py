"""Two processes of one program over loopback, and what their training is compared with."""

import json
import os
import socket

import pytest
from safetensors.torch import load_file

SETTINGS = {
    "samples": 12,
    "steps": 6,
    "save_steps": 2,
    "batch": 4,
    "test_samples": 4,
    "generate_samples": 1,
    "max_new_tokens": 4,
    "mcq_samples": 4,
    "learning_rate": 1e-2,
}


def environment(rank, port):
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def start_two(forks, program, folder):
    """Fork two processes of ``program``, each in a folder of its own; return their pids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in (0, 1):
        place = folder / f"process-{rank}"
        place.mkdir(parents=True, exist_ok=True)
        started.append(forks.start_program(program, place, environment(rank, port)))
    return started


def finish(forks, started, within_s=100):
    """(exit code, stdout, stderr) of each; none may outlast the time."""
    ended = [forks.wait(pid, within_s) for pid in started]
    return [(one.code, one.output, one.errors) for one in ended]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_training(folder, alone):
    one, two = rows(alone.events), rows(folder / "events.jsonl")
    for name in ("step", "tokens", "learning_rate"):
        assert [row[name] for row in two] == [row[name] for row in one], name
    for name in ("loss", "grad_norm"):
        expected = [row[name] for row in one]
        assert [row[name] for row in two] == pytest.approx(expected, rel=1e-4), name
    ours = load_file(alone.adapter / "adapter_model.safetensors")
    theirs = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        assert theirs[name] == pytest.approx(weights, abs=1e-4), name
