"""How far the planner is off: its peak memory and speed against every measured run it knows.

    python bench/planner.py

Reads ``medcot/calibration.json``; ``bench/training.py`` measures such runs anew. No GPU is needed.
Runs without a speed were measured before a change that made them faster.
"""

from __future__ import annotations

from medcot.measured import measured_runs, predict


def main() -> None:
    print("| run | GiB | planned | off | tokens/s | planned | off |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for run in measured_runs():
        peak, speed = predict(run)
        weights = {"none": "16-bit", "fp8": "fp8", "4bit": "4-bit"}[run["quantization"]]
        gpus = f", {run['gpus']} GPUs" if run["gpus"] > 1 else ""
        name = (
            f"{run['engine']}, {weights}, {run['precision']},"
            f" {run['micro_batch']} x {run['accumulation']}{gpus}, rank {run['rank']},"
            f" {run['recomputed_layers']} recomputed"
        )
        line = (
            f"| {name} | {run['peak_gib']:.2f} | {peak:.2f} | {peak / run['peak_gib'] - 1:+.1%} |"
        )
        if measured := run["tokens_per_second"]:
            line += f" {measured:,} | {speed:,.0f} | {speed / measured - 1:+.1%} |"
        else:
            line += " | | |"
        print(line)


if __name__ == "__main__":
    main()
