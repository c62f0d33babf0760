"""How long the demo takes to stop: SIGINT and SIGTERM in each stage, then resumed to the end.

    python bench/stopping.py --folder /tmp/stopping [--whole RUN]

Runs ``medcot run --preset demo``, stops it eight times, at random moments, and resumes it.
Prints a Markdown table of the seconds from signal to exit. With ``--whole``, a finished demo that
nothing interrupted, the reports are compared, too.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("before", "training", "after", "report")
LONGEST_S = {"before": 40, "training": 30, "after": 30, "report": 1}
"""Seconds of a stage within which the signal is sent."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--whole", type=Path)
    arguments = parser.parse_args()
    out, chance = arguments.folder / "run", random.Random(1)
    print("| stage | signal | sent after, s | ended after, s | exit code |")
    print("| --- | --- | --: | --: | --: |")
    for stage in STAGES:
        for number in (signal.SIGINT, signal.SIGTERM):
            print(stop_once(out, stage, number, chance.uniform(0, LONGEST_S[stage])), flush=True)
    subprocess.run(command(out), check=True, stdout=subprocess.DEVNULL)
    if arguments.whole:
        same = (out / "report.md").read_bytes() == (arguments.whole / "report.md").read_bytes()
        print("\nreport.md is", "the same" if same else "ANOTHER")


def command(out: Path) -> list[str]:
    """Return the command that starts or resumes the run."""
    again = ["--resume"] if (out / "config.json").exists() else ["--preset", "demo"]
    return [sys.executable, "-m", "medcot", "run", *again, "--out", str(out)]


def stop_once(out: Path, stage: str, number: signal.Signals, delay: float) -> str:
    """Run until ``stage``, send the signal after ``delay`` seconds more; return a table row."""
    begun = time.time()
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not in_stage(out, stage, begun):
        time.sleep(0.05)
    time.sleep(delay)
    sent = time.monotonic()
    process.send_signal(number)
    process.wait()
    seconds = time.monotonic() - sent
    return f"| {stage} | {number.name} | {delay:.1f} | {seconds:.1f} | {process.returncode} |"


def in_stage(out: Path, stage: str, since: float) -> bool:
    """Return whether the run is in ``stage`` since the time ``since``, in seconds."""
    path = out / "status.json"
    if not path.exists() or path.stat().st_mtime < since:
        return False
    return json.loads(path.read_text())["stage"] == stage


if __name__ == "__main__":
    main()
