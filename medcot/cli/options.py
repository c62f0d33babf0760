"""Derives the command line's flags from `RunConfig`'s fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import click

from medcot.config.resolve import Resolved, check_path, from_text, resolve, value_type
from medcot.config.schema import RunConfig, bounds, choices, option_name
from medcot.terminal import say

if TYPE_CHECKING:
    from medcot.hardware.machine import Machine

PLACES = (
    click.Option(["--config", "config_file"], metavar="FILE", help="options from a .toml file"),
    click.Option(["--out"], metavar="DIR", help="run directory (default: runs/PRESET-TIME)"),
    click.Option(["--resume"], is_flag=True, default=None, help="continue an interrupted run"),
    click.Option(["--json"], is_flag=True, default=None, help="print facts as JSON"),
)


def list_flags(*, places: bool = True) -> list[click.Parameter]:
    """Return every field of `RunConfig` as a flag, and the flags for a command's output."""
    extra = [*PLACES] if places else [PLACES[0], PLACES[3]]
    return [*map(_flag, RunConfig.model_fields), *extra, _help_all()]


def resolve_flags(
    values: dict[str, Any],
    machine: Machine | None = None,
    from_file: Mapping[str, Any] | None = None,
) -> Resolved:
    """Resolve the config from the given flags, the environment and the config file.

    ``auto`` chooses the preset for ``machine``, by default this one. ``from_file`` are the options
    of a file that was read already.
    """
    from medcot.hardware.machine import choose_preset, detect_machine

    config_file = values.pop("config_file", None)
    given = {name: _value(name, value) for name, value in values.items() if _was_given(value)}
    return resolve(
        given,
        lambda: choose_preset(machine or detect_machine()),
        config_file=check_path("--config", config_file) if config_file else None,
        from_file=from_file,
    )


def _flag(name: str) -> click.Option:
    field = RunConfig.model_fields[name]
    extra = cast("dict[str, Any]", field.json_schema_extra or {})
    if value_type(name) is bool:
        shown = extra.get("shown", True)
        return click.Option(
            [option_name(name)],
            is_flag=True,
            default=None,
            help=field.description,
            hidden=not shown,
        )
    return click.Option(
        [option_name(name)],
        metavar=_metavar(name),
        help=field.description,
        multiple=name in ("mcq", "dataset"),
        hidden=not extra.get("shown", True),
    )


def _metavar(name: str) -> str:
    if words := choices(name):
        listed = "|".join(words)
        return listed if len(listed) <= 30 else "NAME"
    low, high = bounds(name)
    kind = {int: "N", float: "X", tuple: "FILE"}.get(value_type(name), "TEXT")
    return f"{low}..{high}" if kind == "N" and high is not None and high < 100_000 else kind


def _help_all() -> click.Option:
    def show(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if not value:
            return
        for option in context.command.params:
            if isinstance(option, click.Option):
                option.hidden = False
        say(context.get_help())
        context.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="show every option",
    )


def _value(name: str, value: Any) -> Any:
    return from_text(name, value) if isinstance(value, str) else value


def _was_given(value: Any) -> bool:
    return value is not None and value != ()
