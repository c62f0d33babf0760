"""Why a plan is as it is, what it warns of, and what to change when nothing fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from medcot.config.schema import BUNDLED_MODEL
from medcot.errors import InputError
from medcot.hardware.machine import usable_gpus
from medcot.planning.constraints import Constraints
from medcot.planning.memory_model import StepConfig
from medcot.planning.model_specs import SMOLLM2_135M, look_up_model_spec
from medcot.planning.search import BY_EXACTNESS, Candidate, Workload, peak_gib
from medcot.planning.speed_model import is_measured

_WEIGHTS = {
    "none": "16-bit weights",
    "fp8": "products in 8-bit floats",
    "8bit": "8-bit weights",
    "4bit": "4-bit weights",
}
FP8_COST = (
    "Rounding to 8 bits cost 3 % of what training won where it was measured (SmolLM2-135M), 4-bit"
    " weights far more; --quantization none costs nothing."
)
_CHECKPOINTING = {True: "recomputing activations", False: "keeping all activations"}

SMALLER_MODELS = ("unsloth/Qwen2.5-3B-Instruct", "unsloth/Qwen2.5-1.5B-Instruct")


def explain_choice(
    constraints: Constraints, best: Candidate, found: Sequence[Candidate]
) -> Iterator[str]:
    """A sentence for each choice that memory and time decided."""
    step, limit = best.step, constraints.limit_gib
    if len(constraints.quantizations) > 1:
        rivals = [one for one in found if one.step.quantization != step.quantization]
        other = rivals[0].step.quantization
        rivals = [one for one in rivals if one.step.quantization == other]
        exact = BY_EXACTNESS.index(step.quantization) == 0
        merit = "and they are the published ones" if exact else "in less memory"
        chosen = _WEIGHTS[step.quantization]
        yield _compare(chosen, _WEIGHTS[other], merit, best, rivals, limit)
        if step.quantization == "fp8":
            yield FP8_COST
    if len(constraints.checkpointings) > 1 and step.engine == "fused":
        yield _explain_recomputation(constraints, best, found)
    elif len(constraints.checkpointings) > 1:
        rivals = [
            one
            for one in found
            if one.step.checkpointing != step.checkpointing
            and one.step.quantization == step.quantization
        ]
        chosen, other = (
            _CHECKPOINTING[way] for way in (step.checkpointing, not step.checkpointing)
        )
        yield _compare(chosen, other, "in less memory", best, rivals, limit)
    if len(constraints.micro_batches) > 1:
        rows = "row" if step.micro_batch == 1 else "rows"
        yield f"{step.micro_batch} {rows} per forward pass: more is no faster or does not fit."


def _explain_recomputation(
    constraints: Constraints, best: Candidate, found: Sequence[Candidate]
) -> str:
    step, limit = best.step, constraints.limit_gib
    if not step.recomputed_layers:
        return "Keeping all activations: they fit, and recomputing them would take time."
    same = (step.quantization, step.micro_batch)
    alike = [one for one in found if (one.step.quantization, one.step.micro_batch) == same]
    kept = min(alike, key=lambda one: one.step.recomputed_layers)
    layers = max(one.step.recomputed_layers for one in alike)
    return (
        f"Recomputing {step.recomputed_layers} of {layers} layers:"
        f" keeping all would take {kept.peak_gib:.1f} GiB of {limit:.1f} GiB."
    )


def list_warnings(
    workload: Workload, constraints: Constraints, epochs: float, total_s: float
) -> Iterator[str]:
    """What the user should know before starting."""
    if not is_measured(constraints.device, constraints.engine, workload.machine):
        name = workload.machine.gpus[0].name if constraints.device == "cuda" else constraints.device
        yield f"Times are estimates: no run on {name} was measured; they may be off by half."
    if constraints.split and constraints.device == "cuda":
        yield "Times are estimates: how fast the weights are gathered depends on the links."
    if epochs > 8:
        yield f"Each row is seen {epochs:.0f} times: the model may learn the rows by heart."
    if total_s > 12 * 3600 and workload.config.preset.startswith("kaggle"):
        yield f"About {total_s / 3600:.0f} hours: a Kaggle session ends after 12."


def explain_no_fit(
    workload: Workload, constraints: Constraints, found: Sequence[Candidate]
) -> InputError:
    """The error for when nothing fits: how far off it is, and what would fit."""
    least = min(found, key=lambda one: one.peak_gib)
    config = workload.config
    where = f"--model {config.model}"
    if constraints.from_preset("model"):
        where = f"--preset {config.preset} ({config.model})"
    kind = "GPU memory" if constraints.device == "cuda" else "RAM"
    if constraints.split:
        kind += f" with the weights split over {constraints.processes}"
    limit = constraints.limit_gib
    got = f"it needs at least {least.peak_gib:.1f} GiB of {limit:.1f} GiB usable {kind}"
    remedies = " or ".join(_remedies(workload, constraints, least.step))
    return InputError(where, got, f"use {remedies}")


def _remedies(workload: Workload, constraints: Constraints, least: StepConfig) -> list[str]:
    """The mildest changes that would make it fit, each on its own; at most three."""

    def fits(step: StepConfig = least, **changes: object) -> bool:
        return peak_gib(replace(workload, **changes), step) <= constraints.limit_gib

    found: list[str] = list(_split(workload, constraints, least))
    layers = workload.spec.layers
    if not least.checkpointing and fits(replace(least, recomputed_layers=layers)):
        found.append("--checkpointing auto")
    if least.micro_batch > 1 and fits(replace(least, micro_batch=1)):
        found.append("--micro-batch 1")
    if (
        constraints.can_quantize
        and least.quantization != "4bit"
        and fits(replace(least, quantization="4bit"))
    ):
        found.append("--quantization 4bit")
    for length in _halves(workload.config.max_length, 64):
        longest = min(length, workload.longest_tokens)
        if fits(longest_tokens=longest, mean_tokens=min(workload.mean_tokens, longest)):
            found.append(f"--max-length {length}")
            break
    for rank in _halves(workload.config.rank, 4):
        if fits(config=workload.config.model_copy(update={"rank": rank})):
            found.append(f"--rank {rank}")
            break
    return found[:3] or [_smaller_model(workload, constraints, least)]


SPLIT_LAUNCH = "accelerate launch --config_file configs/accelerate/fsdp-qlora.yaml"


def _split(workload: Workload, constraints: Constraints, least: StepConfig) -> Iterator[str]:
    """The command that splits the weights over this machine's GPUs, where they fit so."""
    count = len(usable_gpus(workload.machine))
    if (
        constraints.device != "cuda"
        or constraints.split
        or count < 2
        or workload.config.batch % count
    ):
        return
    step = replace(
        least,
        engine="transformers",
        packing=False,
        micro_batch=1,
        quantization="4bit" if constraints.can_quantize else "none",
        recomputed_layers=workload.spec.layers,
        shards=count,
    )
    if peak_gib(workload, step) <= constraints.limit_gib:
        command = f"`{SPLIT_LAUNCH} --num_processes {count} -m medcot run`"
        yield f"{command}, which splits the weights over {count} GPUs"


def _halves(value: int, lowest: int) -> list[int]:
    """Powers of two below ``value``, down to ``lowest``."""
    top = math.ceil(math.log2(value)) - 1 if value > 1 else 0
    return [2**n for n in range(top, -1, -1) if 2**n >= lowest]


def _smaller_model(workload: Workload, constraints: Constraints, least: StepConfig) -> str:
    for name in SMALLER_MODELS:
        spec = look_up_model_spec(name)
        assert spec is not None
        if peak_gib(replace(workload, spec=spec), least) <= constraints.limit_gib:
            return f"a smaller model such as --model {name}, or --preset demo"
    if peak_gib(replace(workload, spec=SMOLLM2_135M), least) <= constraints.limit_gib:
        return f"a larger machine, or --model {BUNDLED_MODEL} (--preset demo)"
    return "a machine with more memory"


def _compare(
    chosen: str,
    other: str,
    merit: str,
    best: Candidate,
    rivals: Sequence[Candidate],
    limit: float,
) -> str:
    """``chosen`` against the ways that ``other`` would have done it."""
    named = chosen[0].upper() + chosen[1:]
    fitting = [one for one in rivals if one.peak_gib <= limit]
    if not fitting:
        least = min(one.peak_gib for one in rivals)
        return f"{named}: {other} would take {least:.1f} GiB of {limit:.1f} GiB."
    gain = min(one.step_s for one in fitting) / best.step_s - 1
    if gain >= 0.05:
        return f"{named}: {gain:.0%} faster than {other}, which would fit too."
    return f"{named}: about as fast as {other}, {merit}."
