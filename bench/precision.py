"""What coarser frozen weights cost: the same trainings with weights in 16, 8 and 4 bits.

    python bench/precision.py --data cot.jsonl --folder /tmp/precision

Needs a CUDA GPU of compute capability 8.9 or later and bitsandbytes. ``medcot run`` trains the
bundled model (SmolLM2-135M, real weights) with each kind of weights and several seeds; all are
scored on the same test rows. With 8-bit floats the scores are those of the 16-bit weights, with 4
bits those of the 4-bit ones, as the runs themselves report them. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

KINDS = {"none": "16 bits", "fp8": "8-bit floats", "4bit": "4 bits (NF4)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side on each GPU")
    arguments = parser.parse_args()
    import torch

    from medcot.engines.bundled_model import bundled_model

    bundled_model()
    gpus = torch.cuda.device_count()
    jobs = [(kind, seed) for seed in range(arguments.seeds) for kind in KINDS]
    with ThreadPoolExecutor(arguments.at_once * gpus) as pool:
        runs = dict(
            zip(
                jobs,
                pool.map(lambda job: run(arguments, *job[1], job[0] % gpus), enumerate(jobs)),
                strict=True,
            )
        )
    print(f"\n{torch.cuda.get_device_name()}, {date.today()}, torch {torch.__version__}\n")
    report({job: found for job, found in runs.items() if found})


def run(arguments: argparse.Namespace, kind: str, seed: int, gpu: int) -> dict[str, Any] | None:
    """One ``medcot run``; what it found, or None where it failed."""
    folder = arguments.folder / f"{kind}-{seed}"
    command = [
        sys.executable, "-m", "medcot", "run", "--preset", "demo", "--engine", "fused",
        "--precision", "bf16", "--quantization", kind, "--seed", str(seed),
        "--dataset", arguments.data, "--language", "en", "--samples", "1000", "--batch", "8",
        "--steps", str(arguments.steps), "--learning-rate", "5e-4", "--rank", "16", "--alpha", "16",
        "--test-samples", "24", "--test-fraction", "0.25", "--generate-samples", "0",
        "--max-length", "1536", "--optimizer", "adamw_torch", "--wandb", "off",
        "--out", str(folder),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)},
    )  # fmt: skip
    if done.returncode:
        print(f"{kind}, seed {seed}: exit {done.returncode}", done.stderr[-800:], flush=True)
        return None
    found = read(folder)
    print(f"{kind}, seed {seed}: {found['before']:.4f} -> {found['after']:.4f}", flush=True)
    return found


def read(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    lines = [
        json.loads(line)
        for line in (folder / "evaluation" / "after.jsonl").read_text().splitlines()
    ]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return {
        "before": report["before"]["nll"],
        "after": report["after"]["nll"],
        "rows": {line["id"]: line["nll"] for line in lines if line.get("nll") is not None},
        "losses": [event["loss"] for event in events],
    }


def report(runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    print(
        "| weights | seed | test loss before | after | largest gap of training losses to 16 bits |"
    )
    print("| --- | --: | --: | --: | --: |")
    for (kind, seed), found in runs.items():
        exact = runs.get(("none", seed), found)
        gap = max(abs(a - b) for a, b in zip(found["losses"], exact["losses"], strict=True))
        print(
            f"| {KINDS[kind]} | {seed} | {found['before']:.4f} | {found['after']:.4f} | {gap:.4f} |"
        )
    print("\n| weights | test loss after, mean over seeds | against 16 bits, same seed and rows |")
    print("| --- | --: | --: |")
    for kind, name in KINDS.items():
        seeds = [seed for one, seed in runs if one == kind and ("none", seed) in runs]
        after = [runs[kind, seed]["after"] for seed in seeds]
        changes = [
            runs[kind, seed]["rows"][row] - loss
            for seed in seeds
            for row, loss in runs["none", seed]["rows"].items()
        ]
        if not changes:
            continue
        error = statistics.stdev(changes) / len(changes) ** 0.5
        print(
            f"| {name} | {statistics.mean(after):.4f} ({min(after):.4f} to {max(after):.4f}) |"
            f" {statistics.mean(changes):+.4f} ± {1.96 * error:.4f} |"
        )


if __name__ == "__main__":
    main()
