"""How fast rows are loaded, checked, split, compared with evaluation sets and made into tokens.

    python bench/data.py [ROWS ...]          # 25,000 and 100,000 unless told; 1000000 takes minutes

Writes synthetic rows of the length that medical-o1-reasoning-SFT's have into a scratch folder
(12 KiB of disk a row, with the cache) and prints a line for each size, first with an empty cache
and then with the one that this left: seconds of each stage, those of both cores together and how
these grew against the size before (1.0 is linear), and the highest resident memory. Every
measurement is a process of its own that does nothing else; up to 25,000 rows the median of three.
The words are those of the bundled cases, so that tokens are of usual length.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import shutil
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

from medcot.config.presets import make_config
from medcot.data.case_list import CaseSubset, list_case_ids
from medcot.data.dataset import load_dataset, split_cases
from medcot.data.fast_tokenizer import load_fast_tokenizer
from medcot.data.selection import select_training_rows
from medcot.data.sources import sample_files
from medcot.engines.bundled_model import bundled_model

SIZES = (25_000, 100_000)
REPEATED_TO = 25_000
"""Rows up to which each measurement is made three times."""

EVALUATION_TEXTS = 2_000
LEAKED = 0.01
"""Share of rows whose question is put into the evaluation set, reworded at its end."""

LENGTHS = {"Question": 80, "Complex_CoT": 330, "Response": 130}
"""Words per field: about 3,200 characters a row."""

STAGES = ("load, validate, deduplicate", "split", "leak check, render, tokenise")


def main(sizes: list[int]) -> None:
    """Measure each size and print the table."""
    print(f"{_device()}, {datetime.now(UTC):%Y-%m-%d}\n")
    titles = ("rows", "cache", *STAGES, "all", "fastest to slowest", "CPU seconds", "growth")
    titles += ("peak MiB", "disk MiB", "trained rows")
    print(f"| {' | '.join(titles)} |")
    print("| ---: | --- |" + " ---: |" * (len(titles) - 2))
    before: dict[str, tuple[int, float]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            evaluation = write_rows(folder / "rows.jsonl", rows)
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
            for cache, runs in measure(folder, 3 if rows <= REPEATED_TO else 1).items():
                seconds = statistics.median(run["cpu"] for run in runs)
                past_rows, past_seconds = before.get(cache, (rows, seconds))
                growth = (seconds / past_seconds) / (rows / past_rows)
                before[cache] = rows, seconds
                print(_line(rows, cache, runs, growth, folder / "cache" / "data"), flush=True)


def measure(folder: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Runs with an empty cache, and with the one that they left."""
    cache = folder / "cache"
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        (cache / bundled_model().name).symlink_to(bundled_model())
        runs["cold"].append(_run_alone(folder))
    runs["warm"] = [_run_alone(folder) for _ in range(repeats)]
    assert len({run["digest"] for some in runs.values() for run in some}) == 1
    return runs


def prepare(folder: Path) -> dict[str, Any]:
    """What a run does with its rows, once: seconds by stage, and this process's peak in MiB."""
    times: dict[str, float] = {}
    began = time.process_time()
    # With so small a share for testing, nearly all rows are made into tokens.
    options = {"dataset": str(folder / "rows.jsonl"), "samples": 1_000_000, "test_fraction": 0.01}
    config = make_config("demo", options)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    tokenizer = load_fast_tokenizer(bundled_model())
    with _timed(times, STAGES[0]):
        data = load_dataset(config)
    with _timed(times, STAGES[1]):
        split = split_cases(data.cases, config)
    with _timed(times, STAGES[2]):
        at = {row_id: position for position, row_id in enumerate(list_case_ids(data.cases))}
        train = CaseSubset(data.cases, (at[row_id] for row_id in split.train))
        texts = {"evaluation": evaluation}
        selection = select_training_rows(train, data.fingerprint, texts, config, tokenizer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    some = [selection.rows[at] for at in range(0, len(selection.rows), 997)]
    digest = repr((len(selection.rows), len(selection.overlaps), some))
    facts = {"cpu": time.process_time() - began, "peak_mib": peak, "digest": digest}
    return {"seconds": times, "rows": len(selection.rows)} | facts


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


@contextmanager
def _timed(times: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[stage] = time.perf_counter() - start


def _run_alone(folder: Path) -> dict[str, Any]:
    """:func:`prepare` in a process of its own, with the cache that is in ``folder``."""
    code = f"import json, pathlib, runpy; run = runpy.run_path({__file__!r})['prepare']\n"
    code += f"print(json.dumps(run(pathlib.Path({str(folder)!r}))))"
    own = os.environ | {"MEDCOT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=own, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _total(run: dict[str, Any]) -> float:
    return sum(run["seconds"].values())


def _line(rows: int, cache: str, runs: list[dict[str, Any]], growth: float, kept: Path) -> str:
    totals = [_total(run) for run in runs]
    seconds = [statistics.median(run["seconds"][stage] for run in runs) for stage in STAGES]
    cells = [f"{rows:,}", cache, *(f"{one:.2f}" for one in (*seconds, statistics.median(totals)))]
    cells.append(f"{min(totals):.2f} to {max(totals):.2f}" if len(runs) > 1 else "one run")
    disk = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    cells.append(f"{statistics.median(run['cpu'] for run in runs):.2f}")
    cells += [f"{growth:.2f}", f"{max(run['peak_mib'] for run in runs):,.0f}"]
    cells += [f"{disk / 2**20:,.0f}", f"{runs[0]['rows']:,}"]
    return f"| {' | '.join(cells)} |"


def _device() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or list(SIZES))
