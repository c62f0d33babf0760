"""A plan as a person reads it."""

from __future__ import annotations

from medcot.planning.plan import Plan


def describe(plan: Plan) -> list[str]:
    """The plan as a person reads it, line by line."""
    trained = plan.trainable_parameters / plan.total_parameters
    step = f"{plan.micro_batch} rows x {plan.accumulation}" + (
        f" x {plan.gpus} processes" if plan.gpus > 1 else ""
    )
    weights = {
        "4bit": "4-bit weights",
        "8bit": "8-bit weights",
        "fp8": f"{plan.precision} weights multiplied in fp8",
        "none": f"{plan.precision} weights",
    }
    switches = f"packing {_on(plan.packing)}, checkpointing {_on(plan.checkpointing)}"
    parts = ", ".join(f"{name} {size:.2f}" for name, size in plan.memory_gib.items())
    times = ", ".join(f"{name} {duration(s)}" for name, s in plan.time_s.items() if name != "total")
    return [
        f"parameters  {plan.trainable_parameters:,} of {plan.total_parameters:,} trained"
        f" ({trained:.2%})",
        f"engine      {plan.engine} on {plan.device}, {weights[plan.quantization]},"
        f" {plan.precision}, {plan.attention}",
        f"step        {step}, {switches}; about {plan.tokens_per_step:,.0f} tokens",
        f"training    {plan.steps:,} steps, {plan.epochs:.2f} epochs,"
        f" about {plan.tokens_per_second:,.0f} tokens/s",
        f"memory      {plan.peak_gib:.1f} GiB of {plan.limit_gib:.1f} GiB: {parts}",
        f"time        {duration(plan.time_s['total'])}: {times}",
        *(f"because     {reason}" for reason in plan.reasons),
        *(f"warning     {warning}" for warning in plan.warnings),
    ]


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _on(switch: bool) -> str:
    return "on" if switch else "off"
