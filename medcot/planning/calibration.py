"""The runs that were measured, and what the planner says of each."""

from __future__ import annotations

from typing import Any

from medcot.hardware.machine import named_machine
from medcot.planning.memory_model import StepConfig, longest_pass_tokens, predict_memory
from medcot.planning.model_specs import look_up_model_spec
from medcot.planning.speed_model import calibration, gradient_exchange_s, micro_batch_s


def measured_runs() -> list[dict[str, Any]]:
    """Runs of ``bench/training.py`` on an H100. Those without ``tokens_per_second`` were measured
    before a change that made them faster, and tell of memory alone."""
    return calibration()["own"]["runs"]


def predict(run: dict[str, Any]) -> tuple[float, float]:
    """(peak GiB, tokens per second) that the planner expects of a measured run."""
    own, spec = calibration()["own"], look_up_model_spec("deepseek-r1-distill-llama-8b")
    assert spec is not None
    mean, longest = own["mean_tokens"], own["longest_tokens"]
    step = StepConfig(
        run["engine"], "cuda", run["quantization"], run["precision"], run["micro_batch"],
        run["packing"], run["recomputed_layers"], "adamw_8bit",
        shared_tokens=own["shared_tokens"] if run["engine"] == "fused" else 0,
        balanced_passes=run["accumulation"] * run["gpus"] if run["engine"] == "fused" else 1,
    )  # fmt: skip
    tokens = longest_pass_tokens(step, mean, longest)
    peak = sum(predict_memory(step, spec, run["rank"], tokens).values())
    once = micro_batch_s(step, spec, named_machine("H100"), mean, longest, run["rank"])
    step_s = run["accumulation"] * once + gradient_exchange_s(step, run["gpus"])
    rows = run["micro_batch"] * run["accumulation"] * run["gpus"]
    return peak, rows * mean / step_s
