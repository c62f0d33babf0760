"""Which kinds of frozen weights, and which optimizer, a machine leaves to choose from."""

from __future__ import annotations

from medcot.config.schema import RunConfig
from medcot.hardware.gpu_specs import supports_fp8
from medcot.hardware.machine import Machine, usable_gpus
from medcot.planning.memory_model import Device, Engine, Precision, Quantization
from medcot.planning.model_specs import ModelSpec
from medcot.planning.refusals import GPU_EXTRA, NO_CUDA, refuse

NO_BITSANDBYTES = "needs bitsandbytes, which is not installed"


def quantizations(
    config: RunConfig, device: Device, can: bool, no_fp8: str, reasons: list[str]
) -> tuple[Quantization, ...]:
    """The kinds of frozen weights to try. ``can``: with bitsandbytes; ``no_fp8``: why not that."""
    if config.quantization == "none":
        return ("none",)
    if config.quantization != "auto":
        if device != "cuda":
            raise refuse(config, "quantization", NO_CUDA, "use --quantization none")
        if config.quantization == "fp8" and no_fp8:
            raise refuse(
                config, "quantization", f"cannot be used {no_fp8}", "use --quantization none"
            )
        if config.quantization != "fp8" and not can:
            raise refuse(config, "quantization", NO_BITSANDBYTES, GPU_EXTRA)
        reasons.append(f"Weights {config.quantization}: as asked for.")
        return (config.quantization,)
    if not can and device == "cuda":
        reasons.append("Weights not in 4 bits: that needs bitsandbytes, which is not installed.")
    return ("none", *(() if no_fp8 else ("fp8",)), *(("4bit",) if can else ()))


def obstacle_to_fp8(machine: Machine, spec: ModelSpec, engine: Engine, precision: Precision) -> str:
    """Why frozen weights cannot be multiplied in 8-bit floats here; empty where they can."""
    if engine != "fused":
        return f"with the {engine} engine"
    if not usable_gpus(machine) or not supports_fp8(usable_gpus(machine)[0]):
        return "on a GPU below compute capability 8.9"
    if precision != "bf16":
        return f"with --precision {precision}"
    if any(size % 16 for sizes in spec.linear_sizes.values() for size in sizes):
        return "with layers whose width is no multiple of 16"
    return ""


def require_8bit_optimizer(config: RunConfig, machine: Machine, device: Device) -> None:
    """Refuse the 8-bit optimizer where it cannot be had."""
    if config.optimizer != "adamw_8bit":
        return
    if device != "cuda":
        raise refuse(config, "optimizer", NO_CUDA, "use --optimizer adamw_torch")
    if "bitsandbytes" not in machine.packages:
        needs = f"{GPU_EXTRA}, or use --optimizer adamw_torch"
        raise refuse(config, "optimizer", NO_BITSANDBYTES, needs)
