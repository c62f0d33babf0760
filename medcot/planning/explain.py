"""Why a plan is as it is, what it warns of, and what to change when nothing fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from medcot.config.schema import BUNDLED_MODEL
from medcot.errors import InputError
from medcot.hardware.machine import usable_gpus
from medcot.planning.constraints import Ground
from medcot.planning.memory_model import Setting
from medcot.planning.model_specs import SMOLLM2_135M, known_shape
from medcot.planning.search import EXACTNESS, Candidate, Work, peak_gib
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


def explain_choice(ground: Ground, best: Candidate, found: Sequence[Candidate]) -> Iterator[str]:
    """A sentence for each choice that memory and time decided."""
    setting, limit = best.setting, ground.limit_gib
    if len(ground.quantizations) > 1:
        rivals = [one for one in found if one.setting.quantization != setting.quantization]
        other = rivals[0].setting.quantization
        rivals = [one for one in rivals if one.setting.quantization == other]
        exact = EXACTNESS.index(setting.quantization) == 0
        merit = "and they are the published ones" if exact else "in less memory"
        chosen = _WEIGHTS[setting.quantization]
        yield _compare(chosen, _WEIGHTS[other], merit, best, rivals, limit)
        if setting.quantization == "fp8":
            yield FP8_COST
    if len(ground.checkpointings) > 1 and setting.engine == "fused":
        yield _explain_recomputation(ground, best, found)
    elif len(ground.checkpointings) > 1:
        rivals = [
            one
            for one in found
            if one.setting.checkpointing != setting.checkpointing
            and one.setting.quantization == setting.quantization
        ]
        chosen, other = (
            _CHECKPOINTING[way] for way in (setting.checkpointing, not setting.checkpointing)
        )
        yield _compare(chosen, other, "in less memory", best, rivals, limit)
    if len(ground.micro_batches) > 1:
        rows = "row" if setting.micro_batch == 1 else "rows"
        yield f"{setting.micro_batch} {rows} per forward pass: more is no faster or does not fit."


def _explain_recomputation(ground: Ground, best: Candidate, found: Sequence[Candidate]) -> str:
    setting, limit = best.setting, ground.limit_gib
    if not setting.recomputed_layers:
        return "Keeping all activations: they fit, and recomputing them would take time."
    same = (setting.quantization, setting.micro_batch)
    alike = [one for one in found if (one.setting.quantization, one.setting.micro_batch) == same]
    kept = min(alike, key=lambda one: one.setting.recomputed_layers)
    layers = max(one.setting.recomputed_layers for one in alike)
    return (
        f"Recomputing {setting.recomputed_layers} of {layers} layers:"
        f" keeping all would take {kept.peak_gib:.1f} GiB of {limit:.1f} GiB."
    )


def warn_of(work: Work, ground: Ground, epochs: float, total_s: float) -> Iterator[str]:
    """What the user should know before starting."""
    if not is_measured(ground.device, ground.engine, work.machine):
        name = work.machine.gpus[0].name if ground.device == "cuda" else ground.device
        yield f"Times are estimates: no run on {name} was measured; they may be off by half."
    if ground.split and ground.device == "cuda":
        yield "Times are estimates: how fast the weights are gathered depends on the links."
    if epochs > 8:
        yield f"Each row is seen {epochs:.0f} times: the model may learn the rows by heart."
    if total_s > 12 * 3600 and work.config.preset.startswith("kaggle"):
        yield f"About {total_s / 3600:.0f} hours: a Kaggle session ends after 12."


def explain_refusal(work: Work, ground: Ground, found: Sequence[Candidate]) -> InputError:
    """The error for when nothing fits: how far off it is, and what would fit."""
    least = min(found, key=lambda one: one.peak_gib)
    config = work.config
    where = f"--model {config.model}"
    if ground.from_preset("model"):
        where = f"--preset {config.preset} ({config.model})"
    kind = "GPU memory" if ground.device == "cuda" else "RAM"
    if ground.split:
        kind += f" with the weights split over {ground.processes}"
    got = f"it needs at least {least.peak_gib:.1f} GiB of {ground.limit_gib:.1f} GiB usable {kind}"
    remedies = " or ".join(_remedies(work, ground, least.setting))
    return InputError(where, got, f"use {remedies}")


def _remedies(work: Work, ground: Ground, least: Setting) -> list[str]:
    """The mildest changes that would make it fit, each on its own; at most three."""

    def fits(setting: Setting = least, **changes: object) -> bool:
        return peak_gib(replace(work, **changes), setting) <= ground.limit_gib

    found: list[str] = list(_split(work, ground, least))
    layers = work.shape.layers
    if not least.checkpointing and fits(replace(least, recomputed_layers=layers)):
        found.append("--checkpointing auto")
    if least.micro_batch > 1 and fits(replace(least, micro_batch=1)):
        found.append("--micro-batch 1")
    if (
        ground.can_quantize
        and least.quantization != "4bit"
        and fits(replace(least, quantization="4bit"))
    ):
        found.append("--quantization 4bit")
    for length in _halves(work.config.max_length, 64):
        longest = min(length, work.longest_tokens)
        if fits(longest_tokens=longest, mean_tokens=min(work.mean_tokens, longest)):
            found.append(f"--max-length {length}")
            break
    for rank in _halves(work.config.rank, 4):
        if fits(config=work.config.model_copy(update={"rank": rank})):
            found.append(f"--rank {rank}")
            break
    return found[:3] or [_smaller_model(work, ground, least)]


SPLIT_LAUNCH = "accelerate launch --config_file configs/accelerate/fsdp-qlora.yaml"


def _split(work: Work, ground: Ground, least: Setting) -> Iterator[str]:
    """The command that splits the weights over this machine's GPUs, where they fit so."""
    count = len(usable_gpus(work.machine))
    if ground.device != "cuda" or ground.split or count < 2 or work.config.batch % count:
        return
    setting = replace(
        least,
        engine="transformers",
        packing=False,
        micro_batch=1,
        quantization="4bit" if ground.can_quantize else "none",
        recomputed_layers=work.shape.layers,
        shards=count,
    )
    if peak_gib(work, setting) <= ground.limit_gib:
        command = f"`{SPLIT_LAUNCH} --num_processes {count} -m medcot run`"
        yield f"{command}, which splits the weights over {count} GPUs"


def _halves(value: int, lowest: int) -> list[int]:
    """Powers of two below ``value``, down to ``lowest``."""
    top = math.ceil(math.log2(value)) - 1 if value > 1 else 0
    return [2**n for n in range(top, -1, -1) if 2**n >= lowest]


def _smaller_model(work: Work, ground: Ground, least: Setting) -> str:
    for name in SMALLER_MODELS:
        shape = known_shape(name)
        assert shape is not None
        if peak_gib(replace(work, shape=shape), least) <= ground.limit_gib:
            return f"a smaller model such as --model {name}, or --preset demo"
    if peak_gib(replace(work, shape=SMOLLM2_135M), least) <= ground.limit_gib:
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
