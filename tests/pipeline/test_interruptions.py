"""Killed at any moment, a second process, a full disk: nothing is lost and nothing is mixed up.

KILLS is how often runs are killed (20 unless it is set).
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from medcot.config.presets import make_config
from medcot.runs.checkpoints import find_damage, list_checkpoints
from medcot.runs.directory import RunDirectory
from tests.support.faults import BALLAST, fill_bytes
from tests.support.fork_server import fork_server
from tests.support.short_runs import SHORT, outcome, write_rows

KILLS = int(os.environ.get("KILLS", "20"))
FAULTS = "tests.support.faults"
STAGES = ("before", "training", "after", "report")
MOUNTING = ("unshare", "--user", "--map-root-user", "--mount")
"""Starts a process that may mount file systems, which only it and its children see."""
SIZES = "size=40m,nr_inodes=400"


@pytest.fixture(scope="module")
def mount_point(tmp_path_factory):
    """Where the server has a small file system of its own; None where none can be mounted."""
    folder = tmp_path_factory.mktemp("small")
    command = [*MOUNTING, "mount", "-t", "tmpfs", "-o", SIZES, "none", str(folder)]
    possible = shutil.which("unshare") and shutil.which("mount")
    if not possible or subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, mount_point):
    wrapper = ()
    if mount_point is not None:
        mount = f"mount -t tmpfs -o {SIZES} none {mount_point}"
        wrapper = (*MOUNTING, "sh", "-c", f'{mount} && exec "$@"', "sh")
    with fork_server(tmp_path_factory.mktemp("outputs"), *wrapper) as running:
        yield running


@pytest.fixture
def disk(server, mount_point):
    """The small file system as this process sees it, emptied."""
    if mount_point is None:
        pytest.skip("no file system can be mounted here without being root")
    seen = Path(f"/proc/{server.pid}/root{mount_point}")
    for one in seen.iterdir():
        shutil.rmtree(one)
    return seen


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("config")
    changes = {"model": str(tiny_model), "dataset": str(write_rows(folder / "rows.jsonl"))}
    path = folder / "config.json"
    path.write_text(make_config("demo", SHORT | changes).model_dump_json())
    return path


class Whole:
    """A run that nothing interrupts: what comes of it, its seconds and its changes of files."""

    def __init__(self, server, config_file, folder):
        out, count = folder / "run", folder / "changes"
        begun = time.monotonic()
        ended = server.run(
            "run", "--config", config_file, "--out", out,
            fault=f"{FAULTS}:killed_at_change", folder=str(out), count=str(count),
        )  # fmt: skip
        assert ended.code == 0, ended.output
        self.seconds = time.monotonic() - begun
        self.outcome, self.changes = outcome(out), int(count.read_text())


@pytest.fixture(scope="module")
def whole(server, config_file, tmp_path_factory):
    return Whole(server, config_file, tmp_path_factory.mktemp("whole"))


def start_or_resume(server, config_file, out, after_s=None, **when):
    """Work on the run; die at a change of its files, or after so many seconds."""
    arguments = ("run", "--config", config_file, "--out", out)
    if (out / "config.json").exists():
        arguments = ("run", "--resume", "--out", out)
    pid = server.start(*arguments, fault=f"{FAULTS}:killed_at_change", folder=str(out), **when)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, 9)  # Ended or not, the number is its own until it is waited for.
    return server.wait(pid)


def moments_to_die(seconds, changes):
    """Yield when to kill: first once in each stage, then by chance, the same at every call."""
    yield {"number": 3}
    for stage in STAGES:
        yield {"number": 2, "stage": stage}
    chance = random.Random(16)
    while True:
        if chance.random() < 0.3:
            yield {"after_s": chance.uniform(0, seconds)}
        else:
            yield {"number": chance.randint(1, changes // 2)}


def test_a_killed_run_resumes_to_the_same_bytes(server, config_file, whole, tmp_path):
    moments, killed, runs = moments_to_die(whole.seconds, whole.changes), Counter(), 0
    while killed.total() < KILLS:
        runs += 1
        out = tmp_path / f"run-{runs}"
        while True:
            when = next(moments) if killed.total() < KILLS else {}
            ended = start_or_resume(server, config_file, out, **when)
            if ended.code == 0:
                break
            assert ended.code == -9, ended.output
            killed[RunDirectory(out).stage() or "planned"] += 1
        assert outcome(out) == whole.outcome
        shutil.rmtree(out)
    print(f"\n{killed.total()} kills of {runs} runs, all with equal bytes: {dict(killed)}")
    assert KILLS < 20 or killed.keys() >= {"planned", *STAGES}


def test_ctrl_c_ends_with_130_and_everything_kept(server, config_file, tmp_path):
    directory, long = RunDirectory(tmp_path / "run"), tmp_path / "long.json"
    long.write_text(json.dumps(json.loads(config_file.read_text()) | {"steps": 500}))
    pid = server.start("train", "--config", long, "--out", directory.path)
    wait_until(lambda: len(list(directory.rows(directory.events))) >= 2)
    os.kill(pid, signal.SIGINT)
    ended = server.wait(pid)
    assert ended.code == 130
    assert "finished work is kept" in ended.output
    assert "Traceback" not in ended.output
    assert directory.stage() == "cancelled"
    assert directory.last_checkpoint() is not None


def test_a_second_process_is_refused_in_every_stage_and_changes_nothing(
    server, config_file, whole, tmp_path
):
    out = tmp_path / "run"
    first = server.start(
        "run", "--config", config_file, "--out", out,
        fault=f"{FAULTS}:paused_in_stages", stages=STAGES, signs=str(tmp_path),
    )  # fmt: skip
    for stage in STAGES:
        wait_until((tmp_path / f"paused-{stage}").exists)
        state = bytes_of(out)
        commands = [("run", "--resume", "--out", out), ("train", "--resume", "--out", out),
                    ("report", "--run", out)]  # fmt: skip
        if stage in ("after", "report"):  # Before, `evaluate` says that the run is not trained.
            commands += [("evaluate", "--run", out), ("evaluate", "--run", out, "--mcq", "sample")]
        for command in commands:
            ended = server.run(*command)
            (line,) = error_lines(ended)
            assert ended.code == 2
            assert (
                f"another process works on this run (pid {first} on {socket.gethostname()}" in line
            )
            assert bytes_of(out) == state
        (tmp_path / f"go-{stage}").touch()
    assert server.wait(first).code == 0
    assert outcome(out) == whole.outcome


@pytest.mark.parametrize(
    ("kind", "stage", "leave"),
    [("bytes", "before", 0), ("bytes", "checkpoint", 0), ("bytes", "checkpoint", 12),
     ("bytes", "after", 0), ("bytes", "report", 0), ("inodes", "checkpoint", 0),
     ("inodes", "checkpoint", 12), ("inodes", "report", 0)],
)  # fmt: skip
def test_a_disk_that_fills_up_is_one_line_and_the_run_resumes(
    server, mount_point, disk, config_file, whole, kind, stage, leave
):
    out = mount_point / "run"
    ended = server.run(
        "run", "--config", config_file, "--out", out, fault=f"{FAULTS}:disk_filled",
        folder=str(mount_point), stage=stage, kind=kind,
        leave=leave * 4096 if kind == "bytes" else leave,
    )  # fmt: skip
    directory = RunDirectory(disk / "run")
    (line,) = error_lines(ended)
    assert ended.code == 1
    assert "no space" in line
    if directory.has("error.json"):
        assert json.loads((disk / "run" / "error.json").read_text())["stage"] in line
    else:
        assert "error.json could not be written" in line
    if stage == "checkpoint":
        assert find_damage(directory.checkpoints / "checkpoint-1") == ""
    elif stage != "before":
        assert find_damage(list_checkpoints(directory.checkpoints)[0]) == ""

    shutil.rmtree(disk / BALLAST)
    again = server.run("run", "--resume", "--out", out)
    assert again.code == 0, again.output
    assert outcome(disk / "run") == whole.outcome


def test_a_disk_that_is_full_at_the_start_is_refused(server, mount_point, disk, config_file):
    fill_bytes(disk / BALLAST, 1 << 20)
    ended = server.run("run", "--config", config_file, "--out", mount_point / "run")
    (line,) = error_lines(ended)
    assert ended.code == 2
    assert "MiB are free" in line
    assert [one.name for one in disk.iterdir()] == [BALLAST]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the first process did not get there"
        time.sleep(0.02)


def bytes_of(folder):
    """Every file, but for the lock's heartbeat, which is its time alone."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_lines(ended):
    assert "Traceback" not in ended.output
    return [line for line in ended.output.splitlines() if line.startswith("medcot: ")]
