"""The tables of ``bench/training.py``, from what its stacks left in the folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path


def report(folder: Path, stacks: Iterable[str], not_run: list[str]) -> None:
    """Print what the ``stacks`` measured, keep it in ``results.json``, name what was not run."""
    import torch
    import transformers

    results = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in stacks
        if (folder / f"{name}.json").exists()
    }
    (folder / "results.json").write_text(json.dumps(results))
    print(
        f"\n{torch.cuda.get_device_name()}, {date.today()}, torch {torch.__version__},"
        f" transformers {transformers.__version__}\n"
    )
    base = next((r["runs"][0]["speed"] for n, r in results.items() if n == "unsloth"), None)
    for name, result in results.items():
        if answers := result.get("answers"):
            print(f"{name}: {answers['tokens'] / answers['seconds']:.1f} tokens/s in answers")
    print("| stack | setting | tokens/s | from to | of the tutorial's | peak GiB | planned |"
          " planned tokens/s |")  # fmt: skip
    print("| --- | --- | --: | :-: | --: | --: | --: | --: |")
    for name, result in results.items():
        for run in result["runs"]:
            plan = run["plan"]
            planned = run["tokens_per_step"] / (plan["tokens_per_step"] / plan["tokens_per_second"])
            ratio = f"{run['speed'] / base:.2f}" if base else ""
            print(
                f"| {name} | {run['name']}, {plan['recomputed_layers']} recomputed |"
                f" {run['speed']:,.0f} | {run['low']:,.0f} to {run['high']:,.0f} | {ratio} |"
                f" {run['peak_gib']:.2f} | {plan['peak_gib']:.2f} | {planned:,.0f} |"
            )
    compare_losses(
        {(name, run["name"]): run["losses"] for name, r in results.items() for run in r["runs"]}
    )
    print("\nNot run:", ", ".join(not_run) or "nothing")


RECIPE = ("unsloth", "unsloth, the tutorial's settings")
LIKE = [
    (("plain", "transformers, the tutorial's settings"), RECIPE),
    (("fused-4bit-bf16", "4 x 2, none recomputed"), RECIPE),
    (("fused-4bit-fp16", "8 x 1"), RECIPE),
    (("fused-16bit", "8 x 1"), RECIPE),
    (("fused-16bit", "fp8, 8 x 1"), RECIPE),
    (("fused-16bit", "fp8, 8 x 1"), ("fused-16bit", "8 x 1")),
    (("both", "8 x 1 on each"), ("fused-16bit", "8 x 2")),
    (("both", "fp8, 8 x 1 on each"), ("fused-16bit", "fp8, 8 x 2")),
]
"""Runs that see the same rows at every step."""


def compare_losses(curves: dict[tuple[str, str], list[float]]) -> None:
    print("\n| losses of | against | steps | last of both | largest difference |")
    print("| --- | --- | --: | :-: | --: |")
    for one, other in LIKE:
        if one in curves and other in curves:
            pairs = list(zip(curves[one], curves[other], strict=False))
            gap = max(abs(a - b) for a, b in pairs)
            print(
                f"| {one[0]}, {one[1]} | {other[0]}, {other[1]} | {len(pairs)} |"
                f" {pairs[-1][0]:.4f}, {pairs[-1][1]:.4f} | {gap:.4f} |"
            )
