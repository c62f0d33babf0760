"""Reads the options of a study, and prices one before it is begun."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medcot.catalog import duration
from medcot.cli.options import resolve_flags
from medcot.config.resolve import check_file_options, read_table
from medcot.config.schema import RunConfig, option_name
from medcot.errors import InputError

if TYPE_CHECKING:
    from medcot.config.resolve import Resolved
    from medcot.hardware.machine import Machine


def resolve_study(
    file: str | None, vary: Sequence[str], flags: dict[str, Any]
) -> tuple[RunConfig, dict[str, list[Any]], Path, bool]:
    """Return the config that all arms share, what varies, the study's folder, and ``--json``.

    Options take precedence over the environment, the environment over ``file``, as over
    ``--config``; ``--vary`` replaces what the file says of the same name, and adds other names. A
    folder that holds a study already, without anything that varies, continues it.

    Raises:
        InputError: An option or the file is wrong, or the study has another value of it.
    """
    from medcot.pipeline.study import FILE, field_of, parse_vary, read_study, study_path

    given = list(vary)
    from_file: dict[str, Any] | None = None
    if file is not None:
        if flags.get("config_file"):
            raise InputError(f"--config {flags['config_file']}", f"{file} is given too", "give one")
        from_file, varied = _read_file(Path(file))
        replaced = {field_of(text): text for text in given}
        added = [text for text in given if field_of(text) not in map(field_of, varied)]
        given = [*(replaced.get(field_of(text), text) for text in varied), *added]
    resolved = resolve_flags(flags, from_file=from_file)
    folder = resolved.out or study_path()
    if not given and (folder / FILE).exists():
        config, known = read_study(folder)
        _require_same_options(resolved, config, folder)
        return config, known, folder, resolved.json
    return resolved.config, parse_vary(given), folder, resolved.json


def _require_same_options(resolved: Resolved, config: RunConfig, folder: Path) -> None:
    for name in resolved.given:
        if name not in RunConfig.model_fields:
            continue
        kept, asked = getattr(config, name), getattr(resolved.config, name)
        if kept != asked:
            got = f"the study in {folder} has {kept}"
            needs = "omit the option, or use another --out"
            raise InputError(f"{option_name(name)} {asked}", got, needs)


def _read_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a file's options, and its table ``vary`` as ``--vary`` has it."""
    found = read_table(path, str(path))
    vary = found.pop("vary", {})
    if not isinstance(vary, dict):
        raise InputError(f"{path}, vary", "not a table", "write [vary] and rank = [4, 16]")
    lines: list[str] = []
    for name, values in cast("dict[str, Any]", vary).items():
        several = cast("list[Any]", values) if isinstance(values, list) else [values]
        lines.append(f"{name}={','.join(map(str, several))}")
    return check_file_options(found, str(path)), lines


def price_study(config: RunConfig, vary: Sequence[str], machine: Machine) -> dict[str, float]:
    """Return the seconds that each arm takes on ``machine``, by the arm's name."""
    from medcot.pipeline.prepare import plan_only
    from medcot.pipeline.study import list_arms, parse_vary
    from medcot.planning.speed_model import count_scorings

    arms: dict[str, float] = {}
    scored: set[bool] = set()
    for arm in list_arms(config, parse_vary(vary)):
        time_s = plan_only(arm.config, machine).time_s
        # The untuned model is scored in the first arm that asks it the same, and in no other.
        before = time_s["evaluate"] / count_scorings(arm.config)
        arms[arm.name] = time_s["total"] - (before if arm.config.thinks in scored else 0.0)
        scored.add(arm.config.thinks)
    return arms


def describe_price(arms: dict[str, float], seeds: int) -> Iterator[str]:
    """Yield a line for each arm of :func:`price_study`, and one for the whole study."""
    for name, seconds in arms.items():
        yield f"{name:<40} {duration(seconds, 'en')}"
    yield f"{f'{len(arms)} arms x {seeds} seeds':<40} {duration(sum(arms.values()), 'en')}"
