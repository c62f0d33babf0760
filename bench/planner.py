"""How far the planner is off: its peak memory and speed against every measured run it knows.

    python bench/planner.py
    python bench/planner.py --results FOLDER/results.json           # runs measured anew
    python bench/planner.py --results FOLDER/results.json --write   # and keep them

``medcot/planning/measured_runs.json`` holds the known runs; ``bench/training.py`` measures
such runs and leaves ``results.json``. With ``--write`` they take the place of those in the table.
The coefficients in ``calibration.json`` are fitted by hand. No GPU is needed. Runs without a speed
were measured while the machine was disturbed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medcot.planning import validation
from medcot.planning.validation import MeasuredRun, load_measured_runs, predict_run

TABLE = Path(validation.__file__).with_name("measured_runs.json")
WEIGHTS = {"none": "16-bit", "fp8": "fp8", "4bit": "4-bit"}
PLANNED = (
    "engine", "quantization", "precision", "gpus", "micro_batch", "accumulation", "packing",
    "recomputed_layers",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--results", type=Path, help="results.json of bench/training.py")
    parser.add_argument("--write", action="store_true", help="keep them in measured_runs.json")
    arguments = parser.parse_args()
    runs = read_results(arguments.results) if arguments.results else load_measured_runs().own.runs
    print("| run | GiB | planned | off | tokens/s | planned | off |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for run in runs:
        print(line_of(run))
    if arguments.write and arguments.results:
        keep(runs)


def line_of(run: MeasuredRun) -> str:
    predicted = predict_run(run)
    peak, speed = predicted.peak_gib, predicted.tokens_per_second
    gpus = f", {run.gpus} GPUs" if run.gpus > 1 else ""
    name = (
        f"{run.engine}, {WEIGHTS[run.quantization]}, {run.precision},"
        f" {run.micro_batch} x {run.accumulation}{gpus}, rank {run.rank},"
        f" {run.recomputed_layers} recomputed"
    )
    line = f"| {name} | {run.peak_gib:.2f} | {peak:.2f} | {peak / run.peak_gib - 1:+.1%} |"
    if measured := run.tokens_per_second:
        return f"{line} {measured:,} | {speed:,.0f} | {speed / measured - 1:+.1%} |"
    return f"{line} | | |"


def read_results(path: Path) -> list[MeasuredRun]:
    """The runs of ``bench/training.py`` as the table has them, without those that fell back."""
    return [
        MeasuredRun(
            **{name: run["plan"][name] for name in PLANNED},
            rank=64 if "rank 64" in run["name"] else 16,
            tokens_per_second=round(run["speed"]),
            low=round(run["low"]),
            high=round(run["high"]),
            peak_gib=round(run["peak_gib"], 2),
        )
        for result in json.loads(path.read_text()).values()
        for run in result["runs"]
        if not run["fell_back"] or run["plan"]["engine"] != "fused"
    ]


def keep(runs: Sequence[MeasuredRun]) -> None:
    """Put ``runs`` in the place of those in the table, one a line, and leave the rest as it is."""
    text = TABLE.read_text(encoding="utf-8")
    start = text.index('"runs": [\n', text.index('"own"')) + len('"runs": [\n')
    end = text.index("\n    ]\n", start)
    lines = ",\n".join("      " + json.dumps(asdict(run)) for run in runs)
    TABLE.write_text(text[:start] + lines + text[end:], encoding="utf-8")
    print(f"\n{len(runs)} runs are in {TABLE.name} now.")


if __name__ == "__main__":
    main()
