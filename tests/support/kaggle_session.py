"""One session of the stand-in of Kaggle: a pushed script in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

IMAGE = Path(__file__).parent / "kaggle_image"
RUNNING = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")


@dataclass(eq=False)
class Session:
    """A version of a kernel. ``output`` is its /kaggle/working; ``extra`` lists more file names."""

    ref: str
    number: int
    body: dict[str, Any]
    folder: Path
    mounts: dict[str, Path]
    url_base: str
    environ: dict[str, str] = field(default_factory=dict)
    kill_when: Callable[[Session], bool] | None = None
    status: str = "QUEUED"
    message: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, bytes] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def output(self) -> Path:
        return self.folder / "kaggle" / "working"

    @property
    def page(self) -> Path:
        """The executed notebook, as a visitor sees it."""
        return self.folder / "executed.html"

    @property
    def running(self) -> bool:
        return self.status in RUNNING

    def names(self) -> list[str]:
        files = [p for p in sorted(self.output.rglob("*")) if p.is_file()]
        return [*(p.relative_to(self.output).as_posix() for p in files), *self.extra]

    def read(self, name: str) -> bytes:
        return self.extra[name] if name in self.extra else (self.output / name).read_bytes()

    def say(self, line: str) -> None:
        self.log.append({"stream_name": "stdout", "time": time.time(), "data": line})

    def end(self, status: str, message: str = "") -> None:
        if self.running:
            self.message, self.status = message, status
        self._ended.set()

    def follow_log(self) -> Iterator[dict[str, Any]]:
        """Events from the beginning, as they come, until the session has ended."""
        sent = 0
        while True:
            ended = self._ended.is_set()
            while sent < len(self.log):
                yield self.log[sent]
                sent += 1
            if ended:
                return
            self._ended.wait(0.02)

    def text(self) -> str:
        return "".join(event["data"] for event in self.log)

    def run(self) -> None:
        """Start the script as Kaggle does: own folders and environment, input read-only."""
        kaggle = self.folder / "kaggle"
        self.output.mkdir(parents=True)
        (kaggle / "input").mkdir()
        for name, source in self.mounts.items():
            shutil.copytree(source, kaggle / "input" / name)
            for path in (kaggle / "input" / name).rglob("*"):
                path.chmod(0o555 if path.is_dir() else 0o444)
        notebook = self.body.get("kernelType") == "notebook"
        script = self.folder / ("script.ipynb" if notebook else "script.py")
        script.write_text(self.body["text"], encoding="utf-8")
        runner = [str(IMAGE / "run_notebook.py"), str(script), str(self.page)]
        self.process = subprocess.Popen(
            [sys.executable, *(runner if notebook else [str(script)])],
            cwd=self.output,
            env=self._environment(kaggle),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.status = "RUNNING"
        threading.Thread(target=self._watch, daemon=True).start()
        threading.Thread(target=self._reap, daemon=True).start()

    def kill(self, status: str = "ERROR", message: str = "") -> None:
        """End it as a container ends: every process at once, with nothing more said."""
        if self.process is not None and self.process.poll() is None:
            self.status, self.message = (status, message) if self.running else (self.status, "")
            try:
                children = psutil.Process(self.process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                children = []
            self.process.kill()
            for child in children:
                child.kill()
            psutil.wait_procs(children, timeout=10)
        self.end(status, message)

    def _watch(self) -> None:
        """Read the log."""
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.say(line)
        code = self.process.wait()
        self.end("COMPLETE" if code == 0 else "ERROR", "" if code == 0 else f"exit code {code}")

    def _reap(self) -> None:
        while self.kill_when and not self._ended.is_set():
            if self.kill_when(self):
                self.kill("ERROR", "Your notebook ran out of memory and was restarted")
            time.sleep(0.02)

    def _environment(self, kaggle: Path) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir()
        passed = ("PATH", "LANG", "MEDCOT_CACHE", "HF_HUB_OFFLINE", "TMPDIR")
        kept = {name: os.environ[name] for name in passed if name in os.environ}
        if self.body.get("enableGpu"):
            kept["PATH"] = f"{self._make_gpus(home)}:{kept.get('PATH', '')}"
        return {
            **kept,
            "HOME": str(home),
            "KAGGLE_ROOT": str(kaggle),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_URL_BASE": self.url_base,
            "KAGGLE_USER_SECRETS_TOKEN": "session-token",
            "PYTHONPATH": str(IMAGE),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "no_proxy": "127.0.0.1,localhost",
            **self.environ,
        }

    def _make_gpus(self, home: Path) -> Path:
        """A folder with the nvidia-smi of the machine: two T4s, which is what that shape means
        (kaggle-cli pull request 1198), or the P100 that one without a shape may get, whose torch
        does not work (issue 1151)."""
        two = ["0, GPU-0, Tesla T4, 15360, 7.5", "1, GPU-1, Tesla T4, 15360, 7.5"]
        old = ["0, GPU-0, Tesla P100-PCIE-16GB, 16384, 6.0"]
        folder = home / "bin"
        folder.mkdir()
        script = folder / "nvidia-smi"
        lines = two if self.body.get("machineShape") else old
        script.write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join(lines) + "\nE\n", encoding="utf-8")
        script.chmod(0o755)
        return folder
