"""Decides what the config and the machine fix before any cost is computed, and says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from medcot.catalog import Message, Reason
from medcot.config.presets import PRESETS
from medcot.config.schema import TARGET_MODULES, EngineName, RunConfig, option_name
from medcot.errors import InputError
from medcot.hardware.gpu_specs import capability, supports_bf16, supports_fp8
from medcot.hardware.machine import Machine, usable_gpus
from medcot.planning.engine_traits import PLAIN_ENGINE, TRAITS
from medcot.planning.memory_model import Device, Precision, Quantization
from medcot.planning.model_specs import (
    MEMORY_MARGIN,
    TIME_MARGIN,
    CountedSpec,
    ModelSpec,
    look_up_model_spec,
)

CUDA_CONTEXT_GIB = 0.6
"""Memory that the driver takes before the first tensor."""
FILL = 0.93
"""Share of the free memory that a plan may fill: predictions are accurate to 7 %."""

NO_CUDA = Message("error_no_cuda")
NO_BITSANDBYTES = Message("error_no_bitsandbytes")
SPLIT = Message("error_split")

T = TypeVar("T")


@dataclass(frozen=True)
class Constraints:
    """Settings fixed by the config or the machine, plus the candidate values of those still open.

    ``row_attention`` says that the fused engine attends row by row, because the GPU has no kernel
    for rows of different length. ``limit_gib`` is the memory of one process that a plan may fill.
    """

    config: RunConfig
    engine: EngineName
    device: Device
    precision: Precision
    attention: str
    packing: bool
    row_attention: bool
    processes: int
    split: bool
    limit_gib: float
    can_quantize: bool
    quantizations: tuple[Quantization, ...]
    checkpointings: tuple[bool, ...]
    micro_batches: tuple[int, ...]
    reasons: tuple[Reason, ...]
    warnings: tuple[Message, ...]


@dataclass(frozen=True)
class _Decision(Generic[T]):
    """A value with the reasons for it and the warnings that come with it."""

    value: T
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[Message, ...] = ()


def find_constraints(config: RunConfig, machine: Machine, spec: ModelSpec) -> Constraints:
    """Decide everything that needs no cost model, and list the candidates for the rest.

    Raises:
        InputError: the config asks for something that this machine cannot do.
    """
    device = _choose_device(config, machine)
    engine = _choose_engine(config, machine, spec, device.value)
    precision = _choose_precision(config, machine, device.value)
    attention = _choose_attention(config, machine, spec, device.value, engine.value)
    processes = _share_batch(config, machine, device.value)
    _require_8bit_optimizer(config, machine, device.value)
    if machine.split and config.quantization == "8bit":
        raise _refuse(config, "quantization", SPLIT, _use("--quantization 4bit or none"))
    packing = _choose_packing(config, spec, device.value, engine.value, attention.value)
    can_quantize = (
        device.value == "cuda" and "bitsandbytes" in machine.packages and not _is_rocm(machine)
    )
    no_fp8 = _obstacle_to_fp8(machine, spec, engine.value, precision.value)
    _require_stored_weights(config, spec, device.value, can_quantize=can_quantize)
    quantizations = (
        _list_quantizations(config, device.value, no_fp8, can_quantize=can_quantize)
        if spec.stored == "none"
        else _Decision((spec.stored,), (Reason("reason_stored", {"choice": spec.stored}),))
    )
    counted = _explain_counted(config, machine, spec)
    decisions = (device, engine, precision, attention, processes, packing, quantizations, counted)
    return Constraints(
        config=config,
        engine=engine.value,
        device=device.value,
        precision=precision.value,
        attention=attention.value,
        packing=packing.value,
        row_attention=TRAITS[engine.value].packs and not _has_bf16(machine, device.value),
        processes=processes.value,
        split=machine.split,
        limit_gib=_memory_limit_gib(machine, device.value),
        can_quantize=can_quantize,
        quantizations=quantizations.value,
        checkpointings={"auto": (False, True), "on": (True,), "off": (False,)}[
            config.checkpointing
        ],
        micro_batches=_list_micro_batches(config, processes.value),
        reasons=tuple(reason for one in decisions for reason in one.reasons),
        warnings=tuple(warning for one in decisions for warning in one.warnings),
    )


def unused_packages(config: RunConfig) -> tuple[str, ...]:
    """Name the engines' optional packages that a run on a GPU does not import.

    The hub is not asked: with a model that is not in the table, ``auto`` may mean any engine.
    """
    optional = {traits.package for traits in TRAITS.values()} - {""}
    if config.engine != "auto":
        return tuple(sorted(optional - {TRAITS[config.engine].package}))
    spec = None if config.target_modules else look_up_model_spec(config.model)
    fused = spec is not None and _unsupported_by_fused(config, spec) is None
    return tuple(sorted(optional)) if fused else ()


def is_from_preset(config: RunConfig, field: str) -> bool:
    """Tell whether ``field`` has the value that the config's preset gives it."""
    preset: dict[str, Any] = PRESETS.get(config.preset, {})
    return field in preset and preset[field] == getattr(config, field)


def _choose_device(config: RunConfig, machine: Machine) -> _Decision[Device]:
    if gpus := usable_gpus(machine):
        values = {"gpu": gpus[0].name, "memory_gib": gpus[0].memory_gib}
        never = (Message("warning_never_run", {"device": "ROCm"}),) if gpus[0].rocm else ()
        return _Decision("cuda", (Reason("reason_device_cuda", values),), never)
    warnings: tuple[Message, ...] = ()
    if machine.gpus:
        old = machine.gpus[0]
        if config.preset != "demo":
            got = Message("error_old_gpu", {"gpu": old.name, "capability": capability(old)})
            raise InputError(f"--preset {config.preset}", got, Message("needs_recent_gpu"))
        warnings = (Message("warning_old_gpu", {"gpu": old.name}),)
    if machine.mps and machine.processes == 1:
        warnings = (*warnings, Message("warning_never_run", {"device": "MPS"}))
        return _Decision("mps", (Reason("reason_device_mps"),), warnings)
    return _Decision("cpu", (Reason("reason_device_cpu"),), warnings)


def _choose_engine(
    config: RunConfig, machine: Machine, spec: ModelSpec, device: Device
) -> _Decision[EngineName]:
    unsupported = _unsupported_by_fused(config, spec)
    _require_engine(config, machine, device, unsupported)
    if machine.split:
        return _Decision(PLAIN_ENGINE, (Reason("reason_engine_split"),))
    if config.engine != "auto":
        reason = Reason("reason_engine_given", {"choice": config.engine})
        return _Decision(config.engine, (reason,))
    if device != "cuda":
        return _Decision(PLAIN_ENGINE, (Reason("reason_engine_no_cuda"),))
    if _is_rocm(machine):
        return _Decision(PLAIN_ENGINE, (Reason("reason_engine_rocm"),))
    if unsupported is None:
        return _Decision("fused", (Reason("reason_engine_fused"),))
    if isinstance(spec, CountedSpec):
        return _Decision(PLAIN_ENGINE, (Reason("reason_engine_family", {"family": spec.family}),))
    if TRAITS["unsloth"].package in machine.packages:
        return _Decision("unsloth", (Reason("reason_engine_unsloth", {"feature": unsupported}),))
    return _Decision(PLAIN_ENGINE, (Reason("reason_engine_no_unsloth"),))


def _require_engine(
    config: RunConfig, machine: Machine, device: Device, unsupported: Message | None
) -> None:
    """Refuse an engine that was asked for and cannot be had."""
    if config.engine == "auto":
        return
    traits, option = TRAITS[config.engine], f"--engine {PLAIN_ENGINE}"
    use = _use(option)
    if traits.packs and unsupported is not None:
        raise _refuse(config, "engine", Message("error_feature", {"feature": unsupported}), use)
    if traits.needs_cuda and device != "cuda":
        raise _refuse(config, "engine", NO_CUDA, use)
    if traits.package and traits.package not in machine.packages:
        needs = Message("needs_gpu_extra_or", {"option": option})
        raise _refuse(config, "engine", Message("error_not_installed"), needs, installable=True)
    if machine.split and not traits.splittable:
        # Also where a preset names the engine: another engine is the remedy, no other preset.
        raise InputError(f"--engine {config.engine}", SPLIT, use)


def _unsupported_by_fused(config: RunConfig, spec: ModelSpec) -> Message | None:
    """Return the feature that the fused engine lacks for this run, if there is one."""
    if isinstance(spec, CountedSpec):
        return Message("feature_family", {"family": spec.family})
    if set(spec.targets) != set(TARGET_MODULES):
        return Message("feature_targets")
    if spec.activation not in ("silu", "swish"):
        return Message("feature_activation", {"name": repr(spec.activation)})
    if spec.attention_dropout:
        return Message("feature_attention_dropout")
    if config.dropout:
        return Message("feature_dropout")
    if config.packing == "off":
        return Message("feature_padding")
    return Message("way_8bit") if config.quantization == "8bit" else None


def _choose_precision(config: RunConfig, machine: Machine, device: Device) -> _Decision[Precision]:
    if config.precision == "fp16" and device != "cuda":
        raise _refuse(config, "precision", NO_CUDA, _use("--precision fp32"))
    if config.precision == "bf16" and device == "cuda" and not _has_bf16(machine, device):
        gpu = usable_gpus(machine)[0]
        why = Message("error_no_bf16", {"gpu": gpu.name, "capability": capability(gpu)})
        raise _refuse(config, "precision", why, _use("--precision fp16"))
    if config.precision != "auto":
        reason = Reason("reason_precision_given", {"choice": config.precision})
        return _Decision(config.precision, (reason,))
    if device == "mps":
        return _Decision("fp32", (Reason("reason_precision_mps"),))
    if device != "cuda":
        return _Decision("fp32", (Reason("reason_precision_fp32"),))
    if _has_bf16(machine, device):
        return _Decision("bf16", (Reason("reason_precision_bf16"),))
    gpu = usable_gpus(machine)[0]
    return _Decision("fp16", (Reason("reason_precision_fp16", {"gpu": gpu.name}),))


def _is_rocm(machine: Machine) -> bool:
    return any(gpu.rocm for gpu in usable_gpus(machine))


def _has_bf16(machine: Machine, device: Device) -> bool:
    """Tell whether the GPU computes in bfloat16; FlashAttention needs the same generation."""
    return device == "cuda" and supports_bf16(usable_gpus(machine)[0])


def _explain_counted(config: RunConfig, machine: Machine, spec: ModelSpec) -> _Decision[None]:
    """Say what holds for a model whose family was counted, and never measured.

    Raises:
        InputError: its weights are to be split over processes.
    """
    if not isinstance(spec, CountedSpec):
        return _Decision(None)
    if machine.split:
        got = Message("error_split_family", {"family": spec.family})
        raise InputError(f"--model {config.model}", got, Message("needs_no_split"))
    reasons: list[Reason] = []
    if spec.experts:
        reasons.append(Reason("reason_experts", {"experts": spec.experts}))
    if spec.towers:
        reasons.append(Reason("reason_towers", {"parts": ", ".join(spec.towers)}))
    margins = {"family": spec.family, "memory": MEMORY_MARGIN - 1, "time": TIME_MARGIN - 1}
    return _Decision(None, tuple(reasons), (Message("warning_counted", margins),))


def _choose_attention(
    config: RunConfig, machine: Machine, spec: ModelSpec, device: Device, engine: EngineName
) -> _Decision[str]:
    """Choose transformers' ``attn_implementation``; some engines bring their own attention."""
    if isinstance(spec, CountedSpec):
        slow = spec.attention == "eager"
        code = "reason_attention_eager" if slow else "reason_attention_sdpa"
        return _Decision(spec.attention, (Reason(code),))
    ordered = (Reason("reason_deterministic"),) if config.deterministic and device == "cuda" else ()
    installed = "flash_attn" in machine.packages
    if not TRAITS[engine].brings_attention and installed and _has_bf16(machine, device):
        return _Decision("flash_attention_2", (Reason("reason_attention_flash"), *ordered))
    return _Decision("sdpa", (Reason("reason_attention_sdpa"), *ordered))


def _choose_packing(
    config: RunConfig, spec: ModelSpec, device: Device, engine: EngineName, attention: str
) -> _Decision[bool]:
    traits = TRAITS[engine]
    if traits.packs:
        return _Decision(value=True, reasons=(Reason("reason_packing_fused"),))
    # Layers with a state of their own would carry it from one packed row into the next.
    alone = isinstance(spec, CountedSpec)
    apart = traits.brings_attention or attention == "flash_attention_2"
    possible = device == "cuda" and apart and not alone
    if config.packing == "on" and not possible:
        why = Message("error_packing", {"engine": engine, "device": device})
        raise _refuse(config, "packing", why, Message("needs_packing"))
    if config.packing != "auto":
        reason = Reason("reason_packing_given", {"choice": config.packing})
        return _Decision(config.packing == "on", (reason,))
    reason = Reason("reason_packing_on" if possible else "reason_packing_off")
    return _Decision(possible, (reason,))


def _share_batch(config: RunConfig, machine: Machine, device: Device) -> _Decision[int]:
    """Divide the batch among the processes that the launcher started; a plan starts none."""
    count, gpus = machine.processes, len(usable_gpus(machine))
    if config.batch % count:
        needs = Message("needs_multiple", {"processes": count})
        raise InputError(f"--batch {config.batch}", Message("error_batch"), needs)
    if count > 1:
        values = {"processes": count, "samples": config.batch // count}
        split = (Reason("reason_weights_split", {"processes": count}),) if machine.split else ()
        return _Decision(count, (Reason("reason_processes", values), *split))
    if device == "cuda" and gpus > 1 and config.seeds == 1:
        return _Decision(count, warnings=(Message("warning_idle_gpus", {"gpus": gpus}),))
    return _Decision(count)


def _require_stored_weights(
    config: RunConfig, spec: ModelSpec, device: Device, *, can_quantize: bool
) -> None:
    """Refuse a repository with quantized weights where they cannot be used as they are stored."""
    if spec.stored == "none":
        return
    where = f"--model {config.model}"
    if device != "cuda" or not can_quantize:
        got = Message("error_stored_here", {"choice": spec.stored})
        raise InputError(where, got, Message("needs_16_bits"))
    if config.quantization not in ("auto", spec.stored):
        got = Message("error_stored", {"choice": spec.stored})
        raise InputError(
            f"--quantization {config.quantization}", got, _use(f"--quantization {spec.stored}")
        )


def _list_quantizations(
    config: RunConfig, device: Device, no_fp8: Message | None, *, can_quantize: bool
) -> _Decision[tuple[Quantization, ...]]:
    """List the frozen-weight formats to try.

    ``no_fp8`` is the obstacle to 8-bit products, ``can_quantize`` tells whether bitsandbytes works.
    """
    asked = config.quantization
    if asked == "none":
        return _Decision(("none",))
    if asked != "auto":
        use = _use("--quantization none")
        if device != "cuda":
            raise _refuse(config, "quantization", NO_CUDA, use)
        if asked == "fp8" and no_fp8 is not None:
            raise _refuse(config, "quantization", no_fp8, use)
        if asked != "fp8" and not can_quantize:
            needs = Message("needs_gpu_extra")
            raise _refuse(config, "quantization", NO_BITSANDBYTES, needs, installable=True)
        cost = (Reason("reason_fp8_cost"),) if asked == "fp8" else ()
        return _Decision((asked,), (Reason("reason_weights_given", {"choice": asked}), *cost))
    nf4: tuple[Quantization, ...] = ("4bit",) if can_quantize else ()
    missing = device == "cuda" and not can_quantize
    # Faster, but what it costs is more than the seeds differ by: see docs/experiments.md.
    faster = (Reason("reason_fp8_possible"),) if no_fp8 is None else ()
    return _Decision(("none", *nf4), (Reason("reason_no_4bit"),) if missing else faster)


def _obstacle_to_fp8(
    machine: Machine, spec: ModelSpec, engine: EngineName, precision: Precision
) -> Message | None:
    """Return why frozen weights cannot be multiplied in 8-bit floats here, or None."""
    if not TRAITS[engine].multiplies_fp8:
        return Message("error_fp8_engine", {"engine": engine})
    if not usable_gpus(machine) or not supports_fp8(usable_gpus(machine)[0]):
        return Message("error_fp8_gpu")
    if precision != "bf16":
        return Message("error_fp8_precision", {"precision": precision})
    if any(size % 16 for sizes in spec.linear_sizes.values() for size in sizes):
        return Message("error_fp8_width")
    return None


def _require_8bit_optimizer(config: RunConfig, machine: Machine, device: Device) -> None:
    if config.optimizer != "adamw_8bit":
        return
    option = "--optimizer adamw_torch"
    if device != "cuda":
        raise _refuse(config, "optimizer", NO_CUDA, _use(option))
    if "bitsandbytes" not in machine.packages:
        needs = Message("needs_gpu_extra_or", {"option": option})
        raise _refuse(config, "optimizer", NO_BITSANDBYTES, needs, installable=True)


def _list_micro_batches(config: RunConfig, processes: int) -> tuple[int, ...]:
    """List the divisors of one process's share of the batch, or the one that was asked for."""
    share = config.batch // processes
    if not config.micro_batch:
        return tuple(n for n in range(1, share + 1) if share % n == 0)
    if share % config.micro_batch:
        code = "error_micro_batch_shared" if processes > 1 else "error_micro_batch"
        why = Message(code, {"batch": config.batch, "processes": processes})
        raise _refuse(config, "micro_batch", why, Message("needs_divisor", {"share": share}))
    return (config.micro_batch,)


def _memory_limit_gib(machine: Machine, device: Device) -> float:
    """Return the memory in GiB that a plan may fill."""
    if device == "cuda":
        smallest = min(gpu.memory_gib for gpu in usable_gpus(machine))
        return max(0.0, FILL * (smallest - CUDA_CONTEXT_GIB))
    return FILL * machine.memory_gib


def _use(option: str) -> Message:
    return Message("needs_option", {"option": option})


def _refuse(
    config: RunConfig, field: str, why: Message, needs: Message, *, installable: bool = False
) -> InputError:
    """Return the error for a field that this machine rules out, naming the preset that set it.

    ``why`` completes ``OPTION VALUE …`` with a verb; ``needs`` says what to do. ``installable``
    tells that only a package is missing.
    """
    option, value = option_name(field), getattr(config, field)
    if not is_from_preset(config, field):
        return InputError(f"{option} {value}", why, needs)
    got = Message("error_of_preset", {"option": f"{option} {value}", "why": why})
    # A preset is for a kind of machine: elsewhere another one is better than a changed one.
    code = "needs_gpu_extra_or_demo" if installable else "needs_cuda_or_demo"
    return InputError(f"--preset {config.preset}", got, Message(code))
