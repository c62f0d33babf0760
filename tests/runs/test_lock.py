"""The lock of a run directory: one process at a time, and none is kept out by a dead one."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medcot.errors import InputError
from medcot.runs import lock as locks
from medcot.runs.lock import RunLock


def write_lock(folder, age=0.0, **changes):
    """A lock of this process, with ``changes``, last touched ``age`` seconds ago."""
    (folder / locks.LOCK_FILE).unlink(missing_ok=True)
    holder = RunLock(folder)
    holder.take()
    found = json.loads(holder.path.read_text())
    holder.release()
    holder.path.write_text(json.dumps(found | changes))
    touched = time.time() - age
    os.utime(holder.path, (touched, touched))
    return holder.path


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_taken_once_and_given_back(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.take() == first.take() == ""
    with pytest.raises(InputError, match=f"pid {os.getpid()} on {socket.gethostname()}"):
        second.take()
    first.release()
    assert not first.path.exists()
    assert second.take() == ""
    second.release()


def test_another_living_process_is_named(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from medcot.runs.lock import RunLock;"
        f"RunLock(Path({str(tmp_path)!r})).take(); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"pid {process.pid} on "):
            RunLock(tmp_path).take()
        process.kill()
    taken = RunLock(tmp_path)
    assert "that process is gone" in taken.take()
    taken.release()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_reused_process_number_is_no_holder(tmp_path):
    write_lock(tmp_path, started="1")
    assert "another process now" in RunLock(tmp_path).take()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_a_lock_from_before_a_restart_is_stale_however_alive_its_number_is(tmp_path, monkeypatch):
    write_lock(tmp_path, age=30, boot="an earlier boot")
    monkeypatch.setattr(locks, "_boot_time", lambda: time.time() - 10)
    assert "before the machine restarted" in RunLock(tmp_path).take()


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_a_holder_elsewhere_counts_by_its_heartbeat(tmp_path, other):
    write_lock(tmp_path, age=locks.SILENT_S / 2, pid=ended_process(), **other)
    with pytest.raises(InputError, match="another process"):
        RunLock(tmp_path).take()
    write_lock(tmp_path, age=2 * locks.SILENT_S, pid=ended_process(), **other)
    taken = RunLock(tmp_path)
    assert "no sign of life" in taken.take()
    taken.release()


def test_a_machine_of_the_same_name_is_not_taken_for_this_one_before_a_restart(tmp_path):
    write_lock(tmp_path, age=1, boot="the other machine's")
    with pytest.raises(InputError, match="another process"):
        RunLock(tmp_path).take()


@pytest.mark.parametrize("text", ["", "[]", '{"pid": "x"}', "\0\0", "[" * 100_000])
def test_a_damaged_lock_blocks_only_until_it_is_old(tmp_path, text):
    path = tmp_path / locks.LOCK_FILE
    path.write_text(text)
    with pytest.raises(InputError, match="not readable"):
        RunLock(tmp_path).take()
    os.utime(path, (1, 1))
    assert "damaged" in RunLock(tmp_path).take()


def test_the_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    lock = RunLock(tmp_path)
    lock.take()
    os.utime(lock.path, (1, 1))
    deadline = time.monotonic() + 10
    while lock.path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lock.path.stat().st_mtime > 1
    lock.release()


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
    write_lock(tmp_path, pid=ended_process())
    rivals = [RunLock(tmp_path) for _ in range(8)]
    refused = []

    def take(rival):
        try:
            rival.take()
        except InputError:
            refused.append(rival)

    threads = [threading.Thread(target=take, args=(rival,)) for rival in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(rivals) - 1
    assert sum(rival.is_intact() for rival in rivals) == 1
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == [locks.LOCK_FILE]
