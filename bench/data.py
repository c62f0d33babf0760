"""How fast rows are loaded, checked, split and compared with evaluation sets.

    python bench/data.py [ROWS ...]

Writes synthetic rows of the length that medical-o1-reasoning-SFT's have into a scratch folder and
prints one line per stage and size: the median of three runs in this process, the growth against the
size before (1.0 is linear), and the highest memory of a process that did nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from medcot.config import make_config
from medcot.data import load_dataset, split_cases
from medcot.leakage import find_leaks
from medcot.records import Dataset

SIZES = (5_000, 25_000)
REPEATS = 3
EVALUATION_TEXTS = 2_000
WORDS = 4_000
LEAKED = 0.01
"""Share of rows whose question is put into the evaluation set, reworded at its end."""

LENGTHS = {"Question": 80, "Complex_CoT": 330, "Response": 130}
"""Words per field: about 3,200 characters a row."""


def main(sizes: list[int]) -> None:
    """Measure each size and print the table."""
    print(f"{_device()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| rows | stage | seconds | rows/s | growth | peak MiB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    before: dict[str, tuple[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            path = Path(folder) / f"{rows}.jsonl"
            evaluation = write_rows(path, rows)
            for stage, seconds in measure(path, evaluation).items():
                past_rows, past_seconds = before.get(stage, (rows, seconds))
                growth = (seconds / past_seconds) / (rows / past_rows)
                peak = _peak_mib(path) if stage == "all" else None
                print(
                    f"| {rows:,} | {stage} | {seconds:.2f} | {rows / seconds:,.0f} | {growth:.2f}"
                    f" | {f'{peak:.0f}' if peak else ''} |",
                    flush=True,
                )
                before[stage] = rows, seconds
            path.unlink()


def measure(path: Path, evaluation: list[tuple[str, str]]) -> dict[str, float]:
    """Seconds of each stage, medians over ``REPEATS`` runs."""
    config = make_config("demo", {"dataset": str(path), "samples": 1_000_000})
    dataset: Dataset | None = None

    def load() -> None:
        nonlocal dataset
        dataset = load_dataset(config)

    times = {"load, validate, deduplicate": _median_s(load)}
    assert dataset is not None
    cases = dataset.cases
    times["split"] = _median_s(lambda: split_cases(cases, config))
    times["leak check"] = _median_s(lambda: find_leaks(cases, {"evaluation": evaluation}))
    return times | {"all": sum(times.values())}


def write_rows(path: Path, rows: int) -> list[tuple[str, str]]:
    """Write ``rows`` synthetic rows; the evaluation texts of which some leak into them."""
    dice = random.Random(3407)
    words = ["".join(dice.choices("aeioulmnrst", k=dice.randint(2, 11))) for _ in range(WORDS)]
    evaluation = [(f"e{n}", _sentence(dice, words, 80)) for n in range(EVALUATION_TEXTS)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {name: _sentence(dice, words, length) for name, length in LENGTHS.items()}
            if dice.random() < LEAKED:
                row["Question"] = dice.choice(evaluation)[1][:400] + f" case {number}"
            file.write(json.dumps(row) + "\n")
    return evaluation


def _sentence(dice: random.Random, words: list[str], length: int) -> str:
    return " ".join(dice.choices(words, k=dice.randint(length // 2, length * 3 // 2))) + "."


def _median_s(work: Callable[[], object]) -> float:
    return statistics.median(_seconds(work))


def _seconds(work: Callable[[], object]) -> Iterator[float]:
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        yield time.perf_counter() - start


def _peak_mib(path: Path) -> float:
    """The highest resident memory of a new process that loads and splits ``path``."""
    code = f"import runpy; runpy.run_path({__file__!r})['hold']({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def hold(path: str) -> None:
    """Load, split and leak-check ``path`` once and print this process's peak memory in MiB."""
    config = make_config("demo", {"dataset": path, "samples": 1_000_000})
    cases = load_dataset(config).cases
    split_cases(cases, config)
    find_leaks(cases, {"evaluation": [(c.id, c.question) for c in cases[:EVALUATION_TEXTS]]})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _device() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or list(SIZES))
