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

LABELLED = 9
"""Percent of the memory bar from which a part has room for its name."""

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
            f'<span class="mc-number">{config.rank * shape.lora_widths[name]:,}</span>',
        )
        for name, (inner, outer) in shape.linear_sizes.items()
        if name in shape.targets
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
    """Draw W + B x A of one layer to scale, with the sizes at their sides."""
    sizes = shape.linear_sizes
    inner, outer = sizes.get("down_proj") or max(sizes.values())
    wide = _drawing("mc-wide", (350, 22), (inner, outer), rank, beside=True)
    narrow = _drawing("mc-narrow", (230, 20), (inner, outer), rank, beside=False)
    said = {"outer": f"{outer:,}", "inner": f"{inner:,}", "rank": rank}
    alt, caption = say("lora_alt", language, **said), say("lora_caption", language, **said)
    return figure(wide + narrow, alt, caption)


def _drawing(
    kind: str, room: tuple[int, int], size: tuple[int, int], rank: int, *, beside: bool
) -> str:
    """Draw W, and B x A to its right or below it; a rank too thin to see is two pixels wide."""
    longest, margin = room
    inner, outer = size
    unit = longest / max(inner, outer)
    width, height, thin = inner * unit, outer * unit, max(2.0, rank * unit)
    left, top = 62.0, 24.0
    parts = [_block(left, top, width, height, "mc-frozen", "W", f"{outer:,}", f"{inner:,}")]
    x, y = (left + width + 92, top) if beside else (left, top + height + 60)
    sign_x, sign_y = (left + width + 26, top + height / 2) if beside else (left, y - 24)
    parts.append(_sign(sign_x, sign_y, "+"))
    parts.append(_block(x, y, thin, height, "mc-trained", "B", f"{outer:,}", f"{rank:,}"))
    parts.append(_sign(x + thin + 20, y + height / 2, "×"))
    right = x + thin + 70
    parts.append(_block(right, y, width, thin, "mc-trained", "A", f"{rank:,}", f"{inner:,}"))
    box = f"0 0 {right + width + margin:.0f} {y + height + margin:.0f}"
    return f'<svg class="mc-chart mc-lora {kind}" viewBox="{box}">{"".join(parts)}</svg>'


def _sign(x: float, y: float, sign: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="mc-sign">{sign}</text>'


def _block(
    x: float, y: float, width: float, height: float, kind: str, name: str, rows: str, columns: str
) -> str:
    """Draw a matrix with its name, and its sizes at the left and the upper side."""
    inside = height > 40 and width > 40
    name_x, name_y = (x + width / 2, y + height / 2) if inside else (x + width / 2, y + height + 17)
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'
        f'<text x="{name_x:.1f}" y="{name_y:.1f}" class="mc-name">{name}</text>'
        f'<text x="{x - 6:.1f}" y="{y + height / 2 + 5:.1f}" class="mc-rows-of">{rows}</text>'
        f'<text x="{x + width / 2:.1f}" y="{y - 7:.1f}">{columns}</text>'
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
    shares = {name: 100 * parts.get(name, 0) / full for name in PARTS}
    names = {name: _part(name, parts, language) for name in PARTS}
    bars = "".join(
        f'<span class="mc-part mc-part-{index}" title="{text(names[name])}"'
        f' style="width:{share:.3f}%">'
        f"{text(say(f'memory_{name}', language)) if share >= LABELLED else ''}</span>"
        for index, (name, share) in enumerate(shares.items())
    )
    keys = "".join(
        f'<li><span class="mc-part mc-part-{index}"></span>{text(names[name])}</li>'
        for index, name in enumerate(PARTS)
    )
    said = say("memory_of", language, peak=f"{peak_gib:.1f}", limit=f"{limit_gib:.1f}")
    free = f"{max(0.0, limit_gib - peak_gib):.1f} GiB"
    rest = f'<span class="mc-free">{text(say("memory_free", language, free=free))}</span>'
    drawn = f'<div class="mc-bar">{bars}{rest if limit_gib > 1.2 * peak_gib else ""}</div>'
    alt = f"{said}: {', '.join(names.values())}"
    return figure(drawn, alt, said) + f'<ul class="mc-keys">{keys}</ul>'


def _part(name: str, parts: Mapping[str, float], language: str) -> str:
    return f"{say(f'memory_{name}', language)} {parts.get(name, 0):.2f}"


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
