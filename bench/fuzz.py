"""Throws hostile inputs at every loader and parser, and searches for more.

    python bench/fuzz.py --hostile      every input of tests/support/hostile_inputs.py once
    python bench/fuzz.py --seconds 600  coverage-guided where atheris is, else at random

An input may be refused in one line. A traceback, five seconds, a gigabyte of memory, or a file
written outside the temporary folder counts as a finding; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT_S, LIMIT_BYTES = 5.0, 1 << 30
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch_writes(allowed: Path, found: list[str]) -> None:
    """Note every path that is written outside the folder ``allowed``."""
    events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in events or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open":
            _, mode, flags = arguments
            if not (any(c in (mode or "") for c in "wax+") or (flags or 0) & WRITES):
                return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((str(allowed), "/dev/null")):
            found.append(f"{event} {path}")

    sys.addaudithook(hook)


def work(connection: Any, folder: str) -> None:
    """Run inputs one after another in a process of its own, within the memory limit."""
    home = Path(folder).resolve()
    os.environ |= {
        "HOME": folder,
        "TMPDIR": folder,
        "MEDCOT_CACHE": f"{folder}/cache",
        "HF_HUB_OFFLINE": "1",
    }
    tempfile.tempdir = folder
    os.chdir(folder)
    from tests.support.fuzz_targets import run_target
    from tests.support.hostile_inputs import as_parquet

    run_target("parquet", as_parquet({"a": [1]}))  # load the libraries before memory is counted
    run_target("model", b"{}")
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + LIMIT_BYTES,) * 2)
    written: list[str] = []
    watch_writes(home, written)
    connection.send("ready")
    while (job := connection.recv()) is not None:
        written.clear()
        try:
            line = run_target(*job)
            outcome = ("written", written[0]) if written else ("refused" if line else "read", line)
        except MemoryError:
            outcome = ("memory", traceback.format_exc(limit=-3))
        except BaseException:  # noqa: BLE001 - that is what is looked for
            outcome = ("traceback", traceback.format_exc(limit=-4))
        connection.send(outcome)


class Worker:
    """A process that runs inputs, started anew after one that hangs or dies."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, self.folder), daemon=True)
        self.process.start()
        other.close()
        assert self.connection.recv() == "ready"

    def run(self, name: str, content: bytes) -> tuple[str, str]:
        self.connection.send((name, content))
        try:
            if self.connection.poll(LIMIT_S):
                return self.connection.recv()
            outcome = ("hang", f"over {LIMIT_S:g} s")
        except (EOFError, OSError):
            self.process.join()
            outcome = ("died", f"exit code {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self.start()
        return outcome


def run_hostile(only: str, show: int) -> int:
    """Run the whole corpus and print how it went."""
    from tests.support.hostile_inputs import hostile_inputs

    counts: Counter[str] = Counter()
    findings: list[tuple[str, str, bytes, str]] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        jobs = (job for job in hostile_inputs() if job[0].startswith(only))
        workers = [Worker(tempfile.mkdtemp(dir=folder)) for _ in range(min(2, os.cpu_count() or 1))]
        lock = threading.Lock()

        def drain(worker: Worker) -> None:
            while True:
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                kind, detail = worker.run(*job)
                counts[kind] += 1
                if kind not in ("read", "refused"):
                    findings.append((kind, *job, detail))

        with ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(drain, workers))
        for worker in workers:
            worker.process.kill()
    if not counts:
        print(f"--only {only}: no target's name begins so", file=sys.stderr)
        return 2
    print(
        f"{sum(counts.values())} hostile inputs in {time.monotonic() - begun:.0f} s: {dict(counts)}"
    )
    report(findings, show)
    return 1 if findings else 0


def report(findings: Iterable[tuple[str, str, bytes, str]], show: int) -> None:
    """Print one finding of each kind, by its last lines."""
    by_place: dict[tuple[str, str, str], list[tuple[bytes, str]]] = {}
    for kind, name, content, detail in findings:
        last = detail.strip().splitlines()[-1][:100]
        by_place.setdefault((kind, name, last), []).append((content, detail))
    for (kind, name, last), found in list(by_place.items())[:show]:
        content, detail = min(found, key=lambda one: len(one[0]))
        print(f"\n{kind} {name} ({len(found)}): {last}\n  {content[:160]!r}\n{detail[-900:]}")


def search(seconds: float) -> int:
    """Search each target for its share of the time; return 1 if one has a finding."""
    from tests.support.fuzz_targets import TARGETS

    share = max(1, round(seconds / len(TARGETS)))
    failed: list[str] = []
    for name in TARGETS:
        command = [sys.executable, __file__, "--target", name, "--seconds", str(share)]
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": folder, "HOME": folder}
            ended = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
        runs = [line for line in (ended.stdout + ended.stderr).splitlines() if "runs in" in line]
        print(f"{name:<26} {runs[-1].strip() if runs else ''} exit {ended.returncode}", flush=True)
        if ended.returncode:
            failed.append(name)
            print((ended.stdout + ended.stderr)[-3000:])
    print(f"{len(TARGETS)} targets, {len(failed)} with findings: {failed}")
    return 1 if failed else 0


def search_target(name: str, seconds: int) -> int:
    """Search one target in this process."""
    seeds = seeds_of(name)
    if importlib.util.find_spec("atheris") is None:
        return search_at_random(name, seconds, seeds)
    import atheris

    with atheris.instrument_imports(include=["medcot"], enable_loader_override=False):
        from tests.support.fuzz_targets import run_target
    folder = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds):
        (folder / str(number)).write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={LIMIT_S:.0f}",
        "-rss_limit_mb=3000",
        "-max_len=4096",
        "-len_control=0",
    ]
    atheris.Setup(
        [sys.argv[0], *limits, str(folder)], lambda content: run_target(name, content) and None
    )
    atheris.Fuzz()
    return 0


def search_at_random(name: str, seconds: float, seeds: list[bytes]) -> int:
    """Spoil the seeds at random until the time is over."""
    import random

    from tests.support.fuzz_targets import run_target

    random_, count, end = random.Random(0), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        content = bytearray(random_.choice(seeds))
        for _ in range(random_.randint(1, 8)):
            at = random_.randint(0, len(content))
            content[at : at + random_.choice((0, 1, 4))] = random_.choice(
                (b"", b"\0", b"\xff", b'"', b"{", b"[", b"\n", b"9" * 30, random_.randbytes(3))
            )
        run_target(name, bytes(content))
        count += 1
    print(f"Done {count} runs in {seconds} second(s)")
    return 0


def seeds_of(name: str) -> list[bytes]:
    """Return small inputs of the corpus to begin with."""
    command = (
        "import sys, json; from tests.support.hostile_inputs import hostile_inputs as h;"
        f"found = [c.hex() for n, c in h() if n == {name!r} and len(c) < 4096];"
        "print(json.dumps(found[:300]))"
    )
    # In a process of its own: atheris instruments what is imported after it.
    done = subprocess.run(
        [sys.executable, "-c", command], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [bytes.fromhex(one) for one in json.loads(done.stdout)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--hostile", action="store_true", help="run the corpus once")
    parser.add_argument("--only", default="", help="targets whose names begin so")
    parser.add_argument("--show", type=int, default=40, help="findings to print")
    parser.add_argument("--seconds", type=float, default=600, help="time of the search")
    parser.add_argument("--target", help="search one target in this process")
    options = parser.parse_args()
    if options.target:
        return search_target(options.target, int(options.seconds))
    return run_hostile(options.only, options.show) if options.hostile else search(options.seconds)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
