"""What the machine and the config decide before any arithmetic: engine, device, precision."""

from __future__ import annotations

from dataclasses import dataclass

from medcot.config.schema import RunConfig
from medcot.errors import InputError
from medcot.hardware.gpu_specs import capability, supports_bf16
from medcot.hardware.machine import Machine, usable_gpus
from medcot.planning.frozen_weights import obstacle_to_fp8, quantizations, require_8bit_optimizer
from medcot.planning.memory_model import Device, Engine, Precision, Quantization
from medcot.planning.model_specs import ModelSpec
from medcot.planning.refusals import GPU_EXTRA, NO_CUDA, from_preset, refuse

CUDA_CONTEXT_GIB = 0.6
"""What the driver takes before the first tensor."""
FILL = 0.93
"""Share of free memory that a plan may fill: predictions are good to 7 %."""

BESIDE_SPLIT = "cannot be used with weights split over processes (FSDP)"

_SWITCH = {"auto": (False, True), "on": (True,), "off": (False,)}


@dataclass(frozen=True)
class Constraints:
    """The settled choices, and the values that are left to try of the open ones."""

    config: RunConfig
    engine: Engine
    device: Device
    precision: Precision
    attention: str
    packing: bool
    by_row: bool
    processes: int
    split: bool
    limit_gib: float
    can_quantize: bool
    quantizations: tuple[Quantization, ...]
    checkpointings: tuple[bool, ...]
    micro_batches: tuple[int, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def from_preset(self, field: str) -> bool:
        return from_preset(self.config, field)


def find_constraints(config: RunConfig, machine: Machine, spec: ModelSpec) -> Constraints:
    """Settle what needs no arithmetic, each choice with its reason.

    Raises:
        InputError: the config asks for what this machine cannot do.
    """
    reasons: list[str] = []
    warnings: list[str] = []
    device = _device(config, machine, reasons, warnings)
    engine = _engine(config, machine, spec, device, reasons)
    precision = _precision(config, machine, device, reasons)
    attention = _attention(machine, device, engine, reasons)
    processes = _processes(config, machine, device, reasons, warnings)
    no_fp8 = obstacle_to_fp8(machine, spec, engine, precision)
    can_quantize = device == "cuda" and "bitsandbytes" in machine.packages
    require_8bit_optimizer(config, machine, device)
    if machine.split and config.quantization == "8bit":
        raise refuse(config, "quantization", BESIDE_SPLIT, "use --quantization 4bit or none")
    return Constraints(
        config=config,
        engine=engine,
        device=device,
        precision=precision,
        attention=attention,
        packing=_packing(config, device, engine, attention, reasons),
        by_row=engine == "fused" and not _is_recent(machine, device),
        processes=processes,
        split=machine.split,
        limit_gib=_limit(machine, device),
        can_quantize=can_quantize,
        quantizations=quantizations(config, device, can_quantize, no_fp8, reasons),
        checkpointings={"auto": (False, True), "on": (True,), "off": (False,)}[
            config.checkpointing
        ],
        micro_batches=_micro_batches(config, processes),
        reasons=tuple(reasons),
        warnings=tuple(warnings),
    )


def _device(config: RunConfig, machine: Machine, reasons: list[str], warnings: list[str]) -> Device:
    if usable_gpus(machine):
        gpu = usable_gpus(machine)[0]
        reasons.append(f"Device cuda: {gpu.name} with {gpu.memory_gib:.1f} GiB.")
        return "cuda"
    if machine.gpus:
        old = machine.gpus[0]
        found = f"it cannot run on {old.name} (compute capability {capability(old)})"
        if config.preset != "demo":
            needs = "use a GPU with compute capability 7.0 or more (T4 and later), or --preset demo"
            raise InputError(f"--preset {config.preset}", found, needs)
        warnings.append(f"The GPU is left unused: {old.name} is too old (below 7.0).")
    if machine.system.startswith("Darwin") and "arm64" in machine.system:
        reasons.append("Device mps: this Mac's GPU.")
        return "mps"
    reasons.append("Device cpu: no usable GPU was found.")
    return "cpu"


def _engine(
    config: RunConfig, machine: Machine, spec: ModelSpec, device: Device, reasons: list[str]
) -> Engine:
    obstacle = _not_fusible(config, spec)
    if config.engine == "fused" and obstacle:
        raise refuse(config, "engine", f"does not support {obstacle}", "use --engine transformers")
    installed = "unsloth" in machine.packages
    if config.engine == "unsloth" and device != "cuda":
        raise refuse(config, "engine", NO_CUDA, "use --engine transformers")
    if config.engine == "unsloth" and not installed:
        needs = f"{GPU_EXTRA}, or use --engine transformers"
        raise refuse(config, "engine", "is not installed", needs)
    if machine.split:
        if config.engine not in ("auto", "transformers"):
            # Also where a preset names the engine: another engine is the remedy, no other preset.
            where = f"--engine {config.engine}"
            raise InputError(where, BESIDE_SPLIT, "use --engine transformers")
        reasons.append("Engine transformers: the only one whose weights can be split (FSDP).")
        return "transformers"
    if config.engine != "auto":
        reasons.append(f"Engine {config.engine}: as asked for.")
        return config.engine
    if device == "cuda" and not obstacle:
        reasons.append("Engine fused: this project's own training pass, the fastest on CUDA.")
        return "fused"
    if device == "cuda" and installed:
        reasons.append(f"Engine unsloth: the fused one does not do {obstacle}.")
        return "unsloth"
    why = "unsloth is not installed" if device == "cuda" else "unsloth needs a CUDA GPU"
    reasons.append(f"Engine transformers: {why}.")
    return "transformers"


def _not_fusible(config: RunConfig, spec: ModelSpec) -> str:
    """Why the fused training pass cannot train this; empty where it can."""
    if spec.qk_norm:
        return "norms of queries and keys"
    if config.dropout:
        return "LoRA dropout"
    if config.packing == "off":
        return "padded rows"
    return "8-bit weights" if config.quantization == "8bit" else ""


def _precision(
    config: RunConfig, machine: Machine, device: Device, reasons: list[str]
) -> Precision:
    if config.precision == "fp16" and device != "cuda":
        raise refuse(config, "precision", NO_CUDA, "use --precision fp32")
    if config.precision == "bf16" and device == "cuda":
        gpu = usable_gpus(machine)[0]
        if not supports_bf16(gpu):
            why = f"needs compute capability 8.0 or more; {gpu.name} has {capability(gpu)}"
            raise refuse(config, "precision", why, "use --precision fp16")
    if config.precision != "auto":
        reasons.append(f"Precision {config.precision}: as asked for.")
        return config.precision
    if device != "cuda":
        reasons.append("Precision fp32: on this device it is faster than 16-bit, and exact.")
        return "fp32"
    gpu = usable_gpus(machine)[0]
    if supports_bf16(gpu):
        reasons.append("Precision bf16: the GPU has it, and it needs no loss scaling.")
        return "bf16"
    reasons.append(f"Precision fp16: {gpu.name} has no bfloat16.")
    return "fp16"


def _is_recent(machine: Machine, device: Device) -> bool:
    """Whether the GPU is of a generation that FlashAttention was written for."""
    return device == "cuda" and supports_bf16(usable_gpus(machine)[0])


def _attention(machine: Machine, device: Device, engine: Engine, reasons: list[str]) -> str:
    """The ``attn_implementation`` of transformers; the others pick their own kernels below it."""
    recent = _is_recent(machine, device)
    if recent and engine == "transformers" and "flash_attn" in machine.packages:
        reasons.append("Attention flash_attention_2: it is installed, and packed rows need it.")
        return "flash_attention_2"
    reasons.append("Attention sdpa: PyTorch's own kernels.")
    return "sdpa"


def _packing(
    config: RunConfig, device: Device, engine: Engine, attention: str, reasons: list[str]
) -> bool:
    if engine == "fused":
        reasons.append("Packing on: rows lie end to end, none is padded, each attends to itself.")
        return True
    apart = device == "cuda" and (engine == "unsloth" or attention == "flash_attention_2")
    if config.packing == "on" and not apart:
        needs = "use --packing auto, or CUDA with unsloth or flash-attn, which keep rows apart"
        raise refuse(config, "packing", f"is not supported by {engine} on {device}", needs)
    if config.packing != "auto":
        reasons.append(f"Packing {config.packing}: as asked for.")
        return config.packing == "on"
    if apart:
        reasons.append("Packing on: rows lie end to end, so that none is padded.")
    else:
        reasons.append("Packing off: no attention kernel here keeps packed rows apart cheaply.")
    return apart


def _processes(
    config: RunConfig,
    machine: Machine,
    device: Device,
    reasons: list[str],
    warnings: list[str],
) -> int:
    """As many as the launcher started: the plan can share the batch out, not start processes."""
    count, gpus = machine.processes, len(usable_gpus(machine))
    if config.batch % count:
        needs = f"use a multiple of {count}, the number of training processes"
        raise InputError(f"--batch {config.batch}", "it cannot be divided equally", needs)
    if count > 1:
        reasons.append(f"{count} processes, each with {config.batch // count} samples of a step.")
        if machine.split:
            reasons.append(f"Weights split: each process keeps 1/{count} and gathers by the layer.")
    elif device == "cuda" and gpus > 1:
        warnings.append(
            f"One of {gpus} GPUs is used: `accelerate launch --num_processes {gpus} -m medcot run`"
            " uses all."
        )
    return count


def _micro_batches(config: RunConfig, processes: int) -> tuple[int, ...]:
    share = config.batch // processes
    if not config.micro_batch:
        return tuple(n for n in range(1, share + 1) if share % n == 0)
    if share % config.micro_batch:
        of = f"does not divide --batch {config.batch}" + (
            f" on {processes} processes" if processes > 1 else ""
        )
        raise refuse(config, "micro_batch", of, f"use a divisor of {share}")
    return (config.micro_batch,)


def _limit(machine: Machine, device: Device) -> float:
    """Memory that a plan may fill, in GiB."""
    if device == "cuda":
        smallest = min(gpu.memory_gib for gpu in usable_gpus(machine))
        return max(0.0, FILL * (smallest - CUDA_CONTEXT_GIB))
    return FILL * machine.memory_gib
