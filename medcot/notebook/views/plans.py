"""The adapter and the plan as a page shows them: shapes, parameters, memory, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medcot.catalog import duration, say
from medcot.config.schema import RunConfig
from medcot.notebook.views.markup import (
    callout,
    details,
    facts,
    figure,
    items,
    join,
    small,
    table,
    text,
)
from medcot.planning.model_specs import ModelSpec
from medcot.planning.plan import Plan

PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "workspace")


def show_lora(shape: ModelSpec, config: RunConfig, language: str) -> str:
    """What the adapter adds: the update's shape, and the exact count of what is trained."""
    trainable, everything = shape.lora_parameters(config.rank), shape.parameters
    rows = [
        (
            f"<code>{text(name)}</code>",
            f"{outer:,} × {inner:,}",
            f"{outer:,} × {config.rank:,}",
            f"{config.rank:,} × {inner:,}",
            f'<span class="mc-number">{config.rank * (inner + outer) * shape.layers:,}</span>',
        )
        for name, (inner, outer) in shape.linear_sizes.items()
    ]
    headers = (
        say("layer", language),
        "W",
        "B",
        "A",
        say("trained_in_layers", language, n=shape.layers),
    )
    scale = config.alpha / config.rank
    return join(
        _picture(shape, config.rank, language),
        facts(
            [
                (say("trained_parameters", language), f"{trainable:,}"),
                (say("all_parameters", language), f"{everything:,}"),
                (say("share", language), f"{trainable / everything:.2%}"),
                (say("scale", language), f"{config.alpha}/{config.rank} = {scale:.3g}"),
            ]
        ),
        details(say("by_layer", language), table(headers, rows)),
    )


def _picture(shape: ModelSpec, rank: int, language: str) -> str:
    """W, B and A of one layer, drawn to scale; a rank too thin to see is one pixel wide."""
    inner, outer = shape.linear_sizes["gate_proj"]
    unit = 150 / max(inner, outer)
    width, height, thin = inner * unit, outer * unit, max(1.5, rank * unit)
    right = width + 46
    box = f"0 0 {right + thin + width + 40:.0f} {height + 34:.0f}"
    parts = [
        f'<svg class="mc-chart mc-lora" viewBox="{box}">',
        _block(6, 6, width, height, "mc-frozen", "W"),
        f'<text x="{width + 25:.0f}" y="{height / 2 + 10:.0f}" class="mc-sign">+</text>',
        _block(right, 6, thin, height, "mc-trained", "B"),
        _block(right + thin + 14, 6, width, thin, "mc-trained", "A"),
        "</svg>",
    ]
    alt = say("lora_alt", language, outer=f"{outer:,}", inner=f"{inner:,}", rank=rank)
    return figure(
        "".join(parts),
        alt,
        say("lora_caption", language, outer=f"{outer:,}", inner=f"{inner:,}", rank=rank),
    )


def _block(x: float, y: float, width: float, height: float, kind: str, name: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + height + 17:.1f}" class="mc-name">{name}</text>'
    )


def show_plan(plan: Plan, language: str) -> str:
    """How the run would go on the chosen machine, before anything of it happens."""
    step = f"{plan.micro_batch} × {plan.accumulation}" + (
        f" × {plan.gpus}" if plan.gpus > 1 else ""
    )
    return join(
        show_memory(plan.memory_gib, plan.peak_gib, plan.limit_gib, language),
        facts(
            [
                (say("time_total", language), duration(plan.time_s["total"], language)),
                (say("steps", language), f"{plan.steps:,}"),
                (say("epochs", language), f"{plan.epochs:.2f}"),
                (say("tokens_per_second", language), f"{plan.tokens_per_second:,.0f}"),
                (say("rows_per_step", language), step),
                (say("engine", language), f"{plan.engine}, {plan.device}, {plan.precision}"),
                (
                    say("weights", language),
                    say(f"weights_{plan.quantization}", language, precision=plan.precision),
                ),
                (say("trained_parameters", language), f"{plan.trainable_parameters:,}"),
            ]
        ),
        small(_times(plan.time_s, language)),
        *(callout("warn", warning.text(language)) for warning in plan.warnings),
        details(say("reasons", language), items(one.text(language) for one in plan.reasons)),
    )


def show_memory(
    parts: Mapping[str, float], peak_gib: float, limit_gib: float, language: str
) -> str:
    """Memory by part as one bar, as long as what the machine has."""
    full = max(limit_gib, peak_gib, 0.001)
    names = [_part(name, parts, language) for name in PARTS]
    bars = "".join(
        f'<span class="mc-part mc-part-{index}" title="{text(name)}"'
        f' style="width:{100 * parts.get(PARTS[index], 0) / full:.3f}%"></span>'
        for index, name in enumerate(names)
    )
    keys = "".join(
        f'<li><span class="mc-part mc-part-{index}"></span>{text(name)}</li>'
        for index, name in enumerate(names)
    )
    said = say("memory_of", language, peak=f"{peak_gib:.1f}", limit=f"{limit_gib:.1f}")
    drawn = f'<div class="mc-bar">{bars}</div>'
    return figure(drawn, f"{said}: {', '.join(names)}", said) + f'<ul class="mc-keys">{keys}</ul>'


def _part(name: str, parts: Mapping[str, float], language: str) -> str:
    return f"{say(f'memory_{name}', language)} {parts.get(name, 0):.2f} GiB"


def _times(times: Mapping[str, float], language: str) -> str:
    names = ("load", "evaluate", "train")
    listed = (
        f"{say(f'time_{name}', language)} {duration(times[name], language)}" for name in names
    )
    return say("times", language, parts=say("comma", language).join(listed))


def show_costs(plans: Sequence[tuple[str, RunConfig, Plan]], language: str) -> str:
    """What a run takes on some machines, before anything else is said."""
    rows = [
        (
            text(say(f"place_{place}", language)),
            text(config.model.rpartition("/")[2]),
            f"{config.samples:,}",
            duration(plan.time_s["total"], language),
            f"{plan.peak_gib:.1f} GiB",
            text(say(f"price_{place}", language)),
        )
        for place, config, plan in plans
    ]
    keys = ("machine", "model", "rows", "time", "memory", "price")
    return join(
        table([say(key, language) for key in keys], rows), small(say("costs_note", language))
    )


def command_line(config: RunConfig, base: RunConfig, program: str) -> str:
    """The command that runs ``config``: its differences from the preset's own values."""
    mine, theirs = config.model_dump(mode="json"), base.model_dump(mode="json")
    parts = [program, "--preset", config.preset]
    for name, value in mine.items():
        if name == "preset" or value == theirs[name] or value is None:
            continue
        for one in value if isinstance(value, list) else [value]:
            parts += ["--" + name.replace("_", "-"), _quoted(one)]
    return " ".join(parts)


def _quoted(value: Any) -> str:
    import shlex

    return shlex.quote(f"{value:g}" if isinstance(value, float) else str(value))
