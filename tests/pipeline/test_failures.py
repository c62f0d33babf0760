"""What ends a run: a second process, a full disk, a directory that is taken away."""

import errno
import json
from types import SimpleNamespace

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError, RunFailed
from medcot.listener import Listener
from medcot.pipeline.failures import recorded
from medcot.pipeline.run import evaluate_only, report_only, run, train_only
from medcot.runs.directory import RunDirectory
from medcot.runs.lock import RunLock


@pytest.fixture
def config(tiny_model):
    return make_config("demo", {"model": str(tiny_model), "samples": 8, "steps": 1})


@pytest.fixture
def directory(tmp_path, config):
    made = RunDirectory(tmp_path / "run")
    made.create(config)
    made.write_json("training.json", {"seconds": 1.0})
    made.write_json("error.json", {"stage": "training"})
    return made


@pytest.mark.parametrize(
    "command",
    [
        lambda config, directory: run(config, directory, resume=True),
        run,
        lambda config, directory: train_only(config, directory, Listener(), resume=True),
        lambda _, directory: evaluate_only(directory, Listener()),
        lambda _, directory: report_only(directory, Listener()),
    ],
    ids=["resume", "run", "train", "evaluate", "report"],
)
def test_a_second_process_is_refused_and_changes_nothing(config, directory, command):
    holder = RunLock(directory.path)
    holder.take()
    state = {path: path.read_bytes() for path in directory.path.iterdir()}
    with pytest.raises(InputError, match=r"another process works on this run \(pid "):
        command(config, RunDirectory(directory.path))
    assert {path: path.read_bytes() for path in directory.path.iterdir()} == state
    holder.release()


def test_two_processes_that_begin_one_run_are_told_apart(config, tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.create(config, lock=True)
    with pytest.raises(InputError, match="already holds a run"):
        second.create(config, lock=True)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match="another process"):
        second.create(config, lock=True)
    first.lock.release()


def test_a_run_says_whose_lock_it_replaced(directory):
    lock = RunLock(directory.path)
    lock.take()
    holder = json.loads(lock.path.read_text())
    lock.release()
    lock.path.write_text(json.dumps(holder | {"started": "1"}))
    lines = []
    listener = Listener()
    listener.say = lines.append
    with recorded(directory, listener, resume=True):
        pass
    assert any("earlier process is replaced" in str(line) for line in lines)
    assert not lock.path.exists()


def carry_out(directory, work):
    with recorded(directory, Listener(), resume=True):
        work()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_says_whether_it_is_written_down(
    directory, monkeypatch, number
):
    def fail(*_):
        raise OSError(number, "full")

    directory.set_stage("training")
    with pytest.raises(RunFailed, match="no space") as caught:
        carry_out(directory, fail)
    assert "could not be written" not in str(caught.value)
    assert directory.read_json("error.json")["stage"] == "training"

    directory.set_stage("after")
    monkeypatch.setattr(directory, "write_text", fail)
    with pytest.raises(RunFailed, match=r"no space.*error\.json could not be written"):
        carry_out(directory, lambda: directory.set_stage("report"))
    assert directory.stage() == "after"


def rename(directory):
    directory.path.rename(directory.path.with_name("moved"))


def replace(directory):
    rename(directory)
    directory.path.mkdir()
    (directory.path / "config.json").write_text("another run's")


@pytest.mark.parametrize("take_away", [rename, replace])
def test_a_directory_that_vanished_is_never_made_again(directory, take_away):
    found = []

    def work():
        directory.set_stage("before")
        take_away(directory)
        found.extend(directory.path.glob("*"))
        directory.append(directory.evaluation("before"), {"id": "1"})

    with pytest.raises(RunFailed, match="removed, renamed or taken over"):
        carry_out(directory, work)
    assert list(directory.path.glob("*")) == found


def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(
    config, tmp_path, monkeypatch
):
    from medcot.pipeline import disk_space

    monkeypatch.setattr(
        disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk_space.FIXED)
    )
    with pytest.raises(InputError, match="16 MiB are free, and the run writes about"):
        run(config, RunDirectory(tmp_path / "new" / "run"))
    assert not (tmp_path / "new").exists()
