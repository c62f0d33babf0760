"""How long starting takes, and what is imported for it.

    python bench/startup.py

One line per command: the median of five runs with the fastest and the slowest, the highest resident
memory, and which of the heavy libraries the command imported. Then what passes until the first
optimizer step of a demo run is done, part by part, once.
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
RUN = """
import sys, tempfile, time
from pathlib import Path
clock, seen = time.perf_counter, {"start": time.perf_counter()}
from medcot.engines import loading as models
from medcot.config.presets import make_config
from medcot.listener import Listener
from medcot.pipeline.prepare import prepare
from medcot.runs.directory import RunDirectory
folder = tempfile.mkdtemp()
config = make_config("demo", {"steps": 1, "wandb": "off"})
directory = RunDirectory(Path(folder) / "run")
prepared = prepare(config, directory, Listener())
seen["reading data, making tokens, planning"] = clock()
import torch
import transformers.models.llama.modeling_llama
seen["importing torch and transformers"] = clock()
loaded = models.load_base(config, prepared.plan)
seen["loading the bundled model, converted before"] = clock()
from medcot.training.fit import fit
import medcot.training.trainers.choose, peft, trl.trainer.sft_trainer
seen["importing peft and trl"] = clock()
models.add_adapter(loaded, config, prepared.plan)
steps = []
fit(loaded, prepared.rows, config, prepared.plan, directory,
    lambda event: steps.append(clock()), lambda: False)
seen["to the end of the first optimizer step"] = steps[0]
times = list(seen.values())
for (name, end), begin in zip(list(seen.items())[1:], times):
    print(f"| {name} | {end - begin:.1f} |")
print(f"| all | {times[-1] - times[0]:.1f} |")
print("| heavy modules then | " + ", ".join(m for m in sys.argv[1:] if m in sys.modules) + " |")
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
    print("\n| a run of `--preset demo`, one process | seconds |\n| --- | ---: |", flush=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *HEAVY], capture_output=True, text=True, check=True
    )
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith("|")))


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
