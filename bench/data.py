"""How fast rows are loaded, checked, split, compared with evaluation sets and made into tokens.

    python bench/data.py [ROWS ...]

Writes synthetic rows of the length that medical-o1-reasoning-SFT's have into a scratch folder and
prints one line per stage and size: the median of three runs in this process with the fastest and
the slowest, the growth against the size before (1.0 is linear), and the highest memory of a process
that did nothing else. The words are those of the bundled cases, so that tokens are of usual length.
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

from medcot.bundled import bundled_model
from medcot.config import make_config
from medcot.data import load_dataset, split_cases
from medcot.leakage import find_leaks
from medcot.prompts import render
from medcot.quick_tokenizer import quick_tokenizer
from medcot.records import Case, Dataset
from medcot.sources import sample_files
from medcot.tokens import Encoded, encode

SIZES = (5_000, 25_000)
REPEATS = 3
EVALUATION_TEXTS = 2_000
ROWS_AT_ONCE = 1_024
"""As a run takes them."""
LEAKED = 0.01
"""Share of rows whose question is put into the evaluation set, reworded at its end."""

LENGTHS = {"Question": 80, "Complex_CoT": 330, "Response": 130}
"""Words per field: about 3,200 characters a row."""


def main(sizes: list[int]) -> None:
    """Measure each size and print the table."""
    print(f"{_device()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| rows | stage | seconds (median) | fastest to slowest | rows/s | growth | peak MiB |")
    print("| ---: | --- | ---: | :-: | ---: | ---: | ---: |")
    before: dict[str, tuple[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            path = Path(folder) / f"{rows}.jsonl"
            evaluation = write_rows(path, rows)
            for stage, times in measure(path, evaluation).items():
                seconds = statistics.median(times)
                past_rows, past_seconds = before.get(stage, (rows, seconds))
                growth = (seconds / past_seconds) / (rows / past_rows)
                peak = _peak_mib(path) if stage == "all" else None
                print(
                    f"| {rows:,} | {stage} | {seconds:.2f} | {min(times):.2f} to {max(times):.2f}"
                    f" | {rows / seconds:,.0f} | {growth:.2f} | {f'{peak:.0f}' if peak else ''} |",
                    flush=True,
                )
                before[stage] = rows, seconds
            path.unlink()


def measure(path: Path, evaluation: list[tuple[str, str]]) -> dict[str, list[float]]:
    """Seconds of each stage in each of ``REPEATS`` runs, and of all stages together."""
    config = make_config("demo", {"dataset": str(path), "samples": 1_000_000})
    dataset: Dataset | None = None

    def load() -> None:
        nonlocal dataset
        dataset = load_dataset(config)

    times = {"load, validate, deduplicate": list(_seconds(load))}
    assert dataset is not None
    cases = dataset.cases
    times["split"] = list(_seconds(lambda: split_cases(cases, config)))
    times["leak check"] = list(_seconds(lambda: find_leaks(cases, {"evaluation": evaluation})))
    times["render, tokenise"] = list(_seconds(lambda: tokenise(cases)))
    return times | {"all": [sum(run) for run in zip(*times.values(), strict=True)]}


def tokenise(cases: tuple[Case, ...]) -> list[Encoded]:
    """All cases as a run makes tokens of them, by the bundled model's tokenizer."""
    tokenizer = quick_tokenizer(bundled_model())
    rows: list[Encoded] = []
    for start in range(0, len(cases), ROWS_AT_ONCE):
        part = cases[start : start + ROWS_AT_ONCE]
        rows += encode(tokenizer, {case.id: render(case, "tutorial") for case in part})
    return rows


def write_rows(path: Path, rows: int) -> list[tuple[str, str]]:
    """Write ``rows`` synthetic rows; the evaluation texts of which some leak into them."""
    dice = random.Random(3407)
    (bundled,) = sample_files("cases", "en")
    words = " ".join(
        str(json.loads(line)[name]) for line in bundled.open(encoding="utf-8") for name in LENGTHS
    ).split()
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
    rows = tokenise(cases)
    assert len(rows) == len(cases)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _device() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or list(SIZES))
