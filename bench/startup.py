"""How long starting takes, and what is imported for it.

    python bench/startup.py

One line per command: the median of five runs with the fastest and the slowest, the highest resident
memory, and which of the heavy libraries the command imported.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime

REPEATS = 5
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "scipy", "altair", "pandas", "wandb")
COMMANDS = {
    "import medcot": ["-c", "import medcot"],
    "medcot --help": ["-m", "medcot", "--help"],
    "medcot run --help": ["-m", "medcot", "run", "--help"],
    "medcot data": ["-m", "medcot", "data"],
    "medcot plan --preset demo": ["-m", "medcot", "plan", "--preset", "demo"],
    "medcot doctor": ["-m", "medcot", "doctor"],
}
LOAD = """
import time
start = time.perf_counter()
from medcot import model
from medcot.config import make_config
from medcot.hardware import detect_machine
from medcot.plan import make_plan
from medcot.shapes import model_shape
config = make_config("demo")
plan = make_plan(config, detect_machine(), model_shape(config), 32, 300.0, 900)
import torch, transformers
imported = time.perf_counter()
model.load_base(config, plan)
print(f"importing {imported - start:.1f} s, loading {time.perf_counter() - imported:.1f} s")
"""


def main() -> None:
    """Measure each command and print the table."""
    cores = os.cpu_count()
    print(f"{platform.processor() or platform.machine()}, {cores} cores,", end=" ")
    print(f"Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| command | seconds (median) | fastest to slowest | peak MiB | heavy imports |")
    print("| --- | ---: | :-: | ---: | --- |")
    for name, arguments in COMMANDS.items():
        runs = [_run(arguments) for _ in range(REPEATS)]
        seconds = [run[0] for run in runs]
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        heavy = ", ".join(heavy_imports(arguments)) or "none"
        facts = f"{statistics.median(seconds):.2f} | {spread} | {runs[0][1]:.0f} | {heavy}"
        print(f"| `{name}` | {facts} |", flush=True)
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    print(f"\nThe bundled model, converted before: {done.stdout.strip()}.")


def heavy_imports(arguments: list[str]) -> list[str]:
    """Which of ``HEAVY`` a command imports, by ``python -X importtime``."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = set(re.findall(r"\|\s+(\w+)\s*$", done.stderr, re.MULTILINE))
    return [name for name in HEAVY if name in found]


def _run(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of one run."""
    with tempfile.TemporaryFile() as nowhere:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=nowhere, stderr=nowhere)
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        return time.perf_counter() - start, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
