"""How soon the notebook follows a slider, and how soon its first page is whole.

    python bench/notebook.py [MOVES]

Serves `apps/tutorial.py` as `make app` does, opens it in Chromium, and moves one slider after the
other, MOVES times in all (100). Each move is timed from the key to the server's word that every
cell that depends on it has run, and by the processor time that the server took for it. The first
view is timed from the request to the last section, for the first visitor of a new server and for
the one after.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
VIEW = [f"#{key}" for key in ("cost", "rows", "prompt", "lora", "evidence", "runs", "next")]
VIEW += [".mc-tokens", ".mc-lora", ".mc-bar", "svg.mc-chart"]
"""What has to be on the page before its first view counts as there."""

SLIDERS = ("rank", "samples", "length", "max_length", "alpha", "batch", "learning_rate")
DONE = "completed-run"
"""What marimo's server sends when every cell of a move has run."""


def main(moves: int) -> None:
    """Measure and print the tables."""
    from playwright.sync_api import sync_playwright

    print(f"{_device()}, {datetime.now(UTC):%Y-%m-%d}\n")
    with serve() as (address, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        print("| visitor | first view (s) |\n| --- | ---: |")
        for visitor in ("first of a new server", "next"):
            page, seconds = open_page(browser, address)
            print(f"| {visitor} | {seconds:.2f} |", flush=True)
        told = {name: [move(page, name, turn, process) for turn in turns]
                for name, turns in share(moves).items()}  # fmt: skip
        browser.close()
    print("\n| slider | moves | server p95 (ms) | key to plan p95 (ms) | median (ms) |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, timed in [*told.items(), ("all", [one for many in told.values() for one in many])]:
        server, whole = zip(*timed, strict=True)
        print(
            f"| {name} | {len(timed)} | {1000 * p95(server):.0f} | {1000 * p95(whole):.0f}"
            f" | {1000 * statistics.median(whole):.0f} |"
        )


@contextmanager
def serve(*options: str) -> Iterator[tuple[str, int]]:
    """The demo's notebook on a free port, in a scratch folder: its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medcot.notebook.server", "--headless"]
    command += ["--port", str(port), "--", "--preset", "demo", *options]
    with tempfile.TemporaryDirectory() as folder:
        # marimo looks for the theme here, as it does for the project's where it is started there.
        theme = '[tool.marimo.display]\ntheme = "system"\n'
        Path(folder, "pyproject.toml").write_text(theme, encoding="utf-8")
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
        try:
            while not _answers(port):
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(20)


def open_page(browser: Any, address: str) -> tuple[Any, float]:
    """A new visitor's page once its last section is there, and the seconds that it took."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.heard = []
    page.on(
        "websocket", lambda one: one.on("framereceived", lambda text: page.heard.append(str(text)))
    )
    started = time.monotonic()
    page.goto(address)
    for part in VIEW:
        page.wait_for_selector(part, timeout=120_000)
    seconds = time.monotonic() - started
    page.wait_for_timeout(2000)
    return page, seconds


def share(moves: int) -> dict[str, range]:
    """The moves of each slider."""
    return {name: range(index, moves, len(SLIDERS)) for index, name in enumerate(SLIDERS)}


def move(page: Any, name: str, turn: int, process: int) -> tuple[float, float]:
    """One step of a slider and, the next time, back: seconds of the server and in all."""
    handle = page.locator(f'[data-knob="{name}"] [role="slider"]')
    handle.focus()
    page.wait_for_timeout(100)
    page.heard.clear()
    before, started = _processor_seconds(process), time.monotonic()
    handle.press("ArrowLeft" if turn // len(SLIDERS) % 2 else "ArrowRight")
    while not any(DONE in text for text in page.heard):
        page.wait_for_timeout(2)
    whole = time.monotonic() - started
    return _processor_seconds(process) - before, whole


def p95(values: Any) -> float:
    """The value that 95 of 100 do not exceed."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _device() -> str:
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
