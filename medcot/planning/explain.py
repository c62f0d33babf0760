"""Explains a plan, lists its warnings, and says what to change when nothing fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from medcot.catalog import Message, Reason, either
from medcot.config.schema import BUNDLED_MODEL
from medcot.errors import InputError
from medcot.hardware.machine import usable_gpus
from medcot.planning.constraints import Constraints, is_from_preset
from medcot.planning.engine_traits import PLAIN_ENGINE
from medcot.planning.memory_model import StepConfig
from medcot.planning.model_specs import SMOLLM2_135M, look_up_model_spec
from medcot.planning.search import BY_EXACTNESS, Candidate, Workload, peak_gib
from medcot.planning.speed_model import is_measured

SMALLER_MODELS = ("unsloth/Qwen2.5-3B-Instruct", "unsloth/Qwen2.5-1.5B-Instruct")
"""Models to suggest where the chosen one does not fit, the larger first."""

MANY_EPOCHS = 8
"""Passes over the rows beyond which a plan warns of memorisation: a rule of thumb."""
KAGGLE_SESSION_S = 12 * 3600
"""Longest GPU session that Kaggle allows."""


def explain_choice(
    constraints: Constraints, best: Candidate, found: Sequence[Candidate]
) -> Iterator[Reason]:
    """Explain each choice that memory and time decided, compared with the other candidates."""
    step = best.step
    if len(constraints.quantizations) > 1:
        yield _explain_quantization(constraints, best, found)
    if len(constraints.checkpointings) > 1:
        by_layer = step.traits.packs
        explain = _explain_recomputed_layers if by_layer else _explain_checkpointing
        yield explain(constraints, best, found)
    if len(constraints.micro_batches) > 1:
        code = "reason_one_row" if step.micro_batch == 1 else "reason_rows"
        yield Reason(code, {"rows": step.micro_batch})


def list_warnings(
    workload: Workload, constraints: Constraints, epochs: float, total_s: float
) -> Iterator[Message]:
    """List what the user should know before starting a run of ``epochs`` and ``total_s``."""
    device = constraints.device
    if not is_measured(device, constraints.engine, workload.machine):
        name = workload.machine.gpus[0].name if device == "cuda" else device
        yield Message("warning_unmeasured", {"device": name})
    if constraints.split and device == "cuda":
        yield Message("warning_links")
    if epochs > MANY_EPOCHS:
        yield Message("warning_epochs", {"epochs": epochs})
    if total_s > KAGGLE_SESSION_S and workload.config.preset.startswith("kaggle"):
        yield Message("warning_kaggle_hours", {"hours": total_s / 3600})


def explain_no_fit(
    workload: Workload, constraints: Constraints, found: Sequence[Candidate]
) -> InputError:
    """Return the error for when nothing fits: how much is missing, and what would fit."""
    least = min(found, key=lambda one: one.peak_gib)
    config = workload.config
    where = f"--model {config.model}"
    if is_from_preset(config, "model"):
        where = f"--preset {config.preset} ({config.model})"
    got = Message(
        "error_too_large_split" if constraints.split else "error_too_large",
        {
            "needed_gib": least.peak_gib,
            "limit_gib": constraints.limit_gib,
            "kind": Message("memory_gpu" if constraints.device == "cuda" else "memory_ram"),
            "processes": constraints.processes,
        },
    )
    remedies = list(_list_remedies(workload, constraints, least.step))[:3]
    if not remedies:
        return InputError(where, got, _suggest_model(workload, constraints, least.step))
    return InputError(where, got, Message("needs_option", {"option": either(remedies)}))


def _explain_quantization(
    constraints: Constraints, best: Candidate, found: Sequence[Candidate]
) -> Reason:
    chosen = best.step.quantization
    other = next(q for one in found if (q := one.step.quantization) != chosen)
    rivals = [one for one in found if one.step.quantization == other]
    merit = "reason_exact" if chosen == BY_EXACTNESS[0] else "reason_smaller"
    return _compare(f"way_{chosen}", f"way_{other}", merit, best, rivals, constraints.limit_gib)


def _explain_checkpointing(
    constraints: Constraints, best: Candidate, found: Sequence[Candidate]
) -> Reason:
    step = best.step
    rivals = [
        one
        for one in found
        if one.step.checkpointing != step.checkpointing
        and one.step.quantization == step.quantization
    ]
    ways = ("way_recompute", "way_keep") if step.checkpointing else ("way_keep", "way_recompute")
    return _compare(*ways, "reason_smaller", best, rivals, constraints.limit_gib)


def _explain_recomputed_layers(
    constraints: Constraints, best: Candidate, found: Sequence[Candidate]
) -> Reason:
    step = best.step
    if not step.recomputed_layers:
        return Reason("reason_keep_activations")
    same = (step.quantization, step.micro_batch)
    alike = [one for one in found if (one.step.quantization, one.step.micro_batch) == same]
    kept = min(alike, key=lambda one: one.step.recomputed_layers)
    return Reason(
        "reason_recompute_layers",
        {
            "recomputed": step.recomputed_layers,
            "layers": max(one.step.recomputed_layers for one in alike),
            "needed_gib": kept.peak_gib,
            "limit_gib": constraints.limit_gib,
        },
    )


def _compare(
    chosen: str,
    other: str,
    merit: str,
    best: Candidate,
    rivals: Sequence[Candidate],
    limit_gib: float,
) -> Reason:
    """Compare the chosen way with its ``rivals``; ``merit`` is the reason where times are equal."""
    ways = {"chosen": Message(chosen), "other": Message(other)}
    fitting = [one for one in rivals if one.peak_gib <= limit_gib]
    if not fitting:
        needed = min(one.peak_gib for one in rivals)
        return Reason("reason_too_large", {**ways, "needed_gib": needed, "limit_gib": limit_gib})
    gain = min(one.step_s for one in fitting) / best.step_s - 1
    return Reason("reason_faster", {**ways, "gain": gain}) if gain >= 0.05 else Reason(merit, ways)


def _list_remedies(
    workload: Workload, constraints: Constraints, least: StepConfig
) -> Iterator[str | Message]:
    """List changes that would each make it fit on its own, the mildest first."""

    def fits(step: StepConfig = least, **changes: object) -> bool:
        return peak_gib(replace(workload, **changes), step) <= constraints.limit_gib

    config = workload.config
    yield from _suggest_split(workload, constraints, least)
    layers = workload.spec.layers
    if not least.checkpointing and fits(replace(least, recomputed_layers=layers)):
        yield "--checkpointing auto"
    if least.micro_batch > 1 and fits(replace(least, micro_batch=1)):
        yield "--micro-batch 1"
    quantizable = constraints.can_quantize and least.quantization != "4bit"
    if quantizable and fits(replace(least, quantization="4bit")):
        yield "--quantization 4bit"
    for length in _powers_below(config.max_length, 64):
        longest = min(length, workload.longest_tokens)
        if fits(longest_tokens=longest, mean_tokens=min(workload.mean_tokens, longest)):
            yield f"--max-length {length}"
            break
    for rank in _powers_below(config.rank, 4):
        if fits(config=config.model_copy(update={"rank": rank})):
            yield f"--rank {rank}"
            break


def _suggest_split(
    workload: Workload, constraints: Constraints, least: StepConfig
) -> Iterator[Message]:
    """Suggest the command that splits the weights over this machine's GPUs, if they then fit."""
    count = len(usable_gpus(workload.machine))
    splittable = constraints.device == "cuda" and not constraints.split and count > 1
    if not splittable or workload.config.batch % count:
        return
    step = replace(
        least,
        engine=PLAIN_ENGINE,
        packing=False,
        micro_batch=1,
        quantization="4bit" if constraints.can_quantize else "none",
        recomputed_layers=workload.spec.layers,
        shards=count,
    )
    if peak_gib(workload, step) <= constraints.limit_gib:
        yield Message("remedy_split", {"gpus": count})


def _powers_below(value: int, lowest: int) -> list[int]:
    """List the powers of two below ``value`` down to ``lowest``, the largest first."""
    top = math.ceil(math.log2(value)) - 1 if value > 1 else 0
    return [2**n for n in range(top, -1, -1) if 2**n >= lowest]


def _suggest_model(workload: Workload, constraints: Constraints, least: StepConfig) -> Message:
    for name in SMALLER_MODELS:
        spec = look_up_model_spec(name)
        assert spec is not None
        if peak_gib(replace(workload, spec=spec), least) <= constraints.limit_gib:
            return Message("needs_smaller_model", {"model": name})
    if peak_gib(replace(workload, spec=SMOLLM2_135M), least) <= constraints.limit_gib:
        return Message("needs_larger_machine", {"model": BUNDLED_MODEL})
    return Message("needs_memory")
