"""Predicts the measured runs of the calibration table, to see how far the cost models are off."""

from __future__ import annotations

from dataclasses import dataclass

from medcot.hardware.machine import named_machine
from medcot.planning.calibration import MeasuredRun, load_calibration
from medcot.planning.engine_traits import TRAITS
from medcot.planning.memory_model import StepConfig, longest_pass_tokens, predict_memory
from medcot.planning.model_specs import look_up_model_spec
from medcot.planning.speed_model import gradient_exchange_s, micro_batch_s


@dataclass(frozen=True)
class Prediction:
    """The peak memory and the throughput that the planner expects of a run."""

    peak_gib: float
    tokens_per_second: float


def predict_run(run: MeasuredRun) -> Prediction:
    """Predict the memory and throughput of a measured run."""
    own, spec = load_calibration().own, look_up_model_spec("deepseek-r1-distill-llama-8b")
    assert spec is not None
    mean, longest = own.mean_tokens, own.longest_tokens
    packs = TRAITS[run.engine].packs
    step = StepConfig(
        run.engine, "cuda", run.quantization, run.precision, run.micro_batch,
        run.packing, run.recomputed_layers, "adamw_8bit",
        shared_tokens=own.shared_tokens if packs else 0,
        balanced_passes=run.accumulation * run.gpus if packs else 1,
    )  # fmt: skip
    tokens = longest_pass_tokens(step, mean, longest)
    peak = sum(predict_memory(step, spec, run.rank, tokens).values())
    once = micro_batch_s(step, spec, named_machine("H100"), mean, longest, run.rank)
    step_s = run.accumulation * once + gradient_exchange_s(step, run.gpus)
    rows = run.micro_batch * run.accumulation * run.gpus
    return Prediction(peak, rows * mean / step_s)
