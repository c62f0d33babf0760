"""Resolves a `RunConfig`: option > environment > config file > preset."""

from __future__ import annotations

import errno
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

from medcot.catalog import Message
from medcot.config.presets import PRESETS, make_config
from medcot.config.schema import RunConfig, build_config
from medcot.errors import InputError, nearest
from medcot.paths import expand_home

ENVIRONMENT_ONLY = (
    "MEDCOT_CACHE",
    "MEDCOT_DEV_DATA",
    "MEDCOT_JUDGE_LOGIN",
    "MEDCOT_LLAMA_CPP",
    "MEDCOT_OFFLINE",
)
"""``MEDCOT_`` variables that are not options."""

LARGEST_FILE = 1_000_000
"""Bytes of a file of options."""

PLACE_OPTIONS = ("out", "resume", "json")
"""Shared options that say where and how to run, and so are no fields of `RunConfig`."""

_PLACE_TYPES = (
    ("out", str, "the name of a folder"),
    ("resume", bool, "true or false"),
    ("json", bool, "true or false"),
)

ChoosePreset = Callable[[], tuple[str, str | Message]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The resolved options of a command. ``preset_reason`` says why ``auto`` chose the preset."""

    config: RunConfig
    preset_reason: str | Message
    out: Path | None
    resume: bool
    json: bool
    given: Mapping[str, Any]


def resolve(
    options: Mapping[str, Any],
    choose_preset: ChoosePreset,
    environment: Mapping[str, str] | None = None,
    config_file: Path | None = None,
    from_file: Mapping[str, Any] | None = None,
) -> Resolved:
    """Combine the sources; ``options`` holds only what was given on the command line.

    Args:
        from_file: The options of a file that was read already, in the place of ``config_file``.

    Raises:
        InputError: an unknown name, or a value that its field refuses, with its source.
    """
    if from_file is None:
        from_file = read_config_file(config_file) if config_file else {}
    from_environment = read_environment(os.environ if environment is None else environment)
    merged = _override(_override(from_file, from_environment), dict(options))
    places = {name: merged.pop(name) for name in PLACE_OPTIONS if name in merged}
    preset, reason = str(merged.pop("preset", "auto")), ""
    if preset == "auto":
        preset, reason = choose_preset()
    out = places.get("out")
    return Resolved(
        config=make_config(preset, merged),
        preset_reason=reason,
        out=check_path("--out", str(out)) if out else None,
        resume=bool(places.get("resume", False)),
        json=bool(places.get("json", False)),
        given={**from_file, **from_environment, **options},
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the options in a ``.toml`` file, or in a run's ``config.json``.

    Raises:
        InputError: no such file, no TOML or JSON, an unknown key or a refused value.
    """
    where = f"--config {path}"
    return check_file_options(read_table(path, where), where)


def read_table(path: Path, where: str) -> dict[str, Any]:
    """Read a ``.toml`` or ``.json`` file of options, whose names may have hyphens.

    Raises:
        InputError: no such file, or no TOML or JSON.
    """
    try:
        text = _read_text(path, where)
    except UnicodeDecodeError as error:
        raise InputError(where, f"byte {error.start} is not UTF-8", "save it as UTF-8") from None
    except OSError as error:
        raise InputError(where, error.strerror or str(error), "expected a readable file") from None
    try:
        parsed: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except RecursionError:
        raise InputError(where, "nested too deeply", "expected a table of options") from None
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise InputError(
            where, f"not valid {kind} ({error})", f"expected a {kind} file of options"
        ) from None
    if not isinstance(parsed, dict):
        raise InputError(where, f"found a {type(parsed).__name__}", "expected a table of options")
    return {key.replace("-", "_"): value for key, value in cast("dict[str, Any]", parsed).items()}


def check_file_options(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the options of the file ``where``.

    Raises:
        InputError: an unknown key or a refused value.
    """
    known = [*RunConfig.model_fields, *PLACE_OPTIONS]
    for key in values:
        if key not in known:
            needs = f"expected the name of an option{nearest(key, known)}"
            raise InputError(where, f"unknown key {key!r}", needs)
    _check_values(values, where)
    return values


def _read_text(path: Path, where: str) -> str:
    """Read a file of options. Editors of Windows put a byte order mark before UTF-8."""
    if path.exists() and not path.is_file():
        got = "found a folder" if path.is_dir() else "not a regular file"
        raise InputError(where, got, "expected a .toml file")
    with path.open("rb") as file:
        raw = file.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        needs = f"expected a file of options, of at most {LARGEST_FILE:,} bytes"
        raise InputError(where, "found a larger file", needs)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(where, "found UTF-16 text", "save it as UTF-8")
    return raw.decode("utf-8-sig")


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read the options among the ``MEDCOT_…`` variables.

    Raises:
        InputError: an unknown variable or a refused value.
    """
    known = [*RunConfig.model_fields, *PLACE_OPTIONS]
    values: dict[str, Any] = {}
    for variable in sorted(environment):
        if not variable.startswith("MEDCOT_") or variable in ENVIRONMENT_ONLY:
            continue
        name = variable.removeprefix("MEDCOT_").lower()
        if name not in known:
            meant = nearest(variable, [f"MEDCOT_{field.upper()}" for field in known])
            raise InputError(variable, "unknown variable", f"expected MEDCOT_OPTION{meant}")
        values[name] = from_text(name, environment[variable])
        _check_values({name: values[name]}, variable)
    return values


def check_path(option: str, path: str) -> Path:
    """Return ``path`` with ``~`` expanded if a file or folder can have that name.

    Raises:
        InputError: it holds U+0000, or is longer than the file system takes.
    """
    expanded = expand_home(path)
    if "\0" in expanded:
        raise InputError(option, "found U+0000 in a path", "expected the name of a file or folder")
    try:
        Path(expanded).stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            got = f"a name of {len(expanded):,} characters is too long"
            raise InputError(option, got, "use a shorter one") from None
        if error.errno == errno.ENOTDIR:
            got = "a part of it is a file, not a folder"
            raise InputError(f"{option} {path}", got, "use another place") from None
    except ValueError:
        raise InputError(option, f"found {expanded!r}", "expected a name in UTF-8") from None
    return Path(expanded)


TRUE_WORDS, FALSE_WORDS = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def from_text(name: str, text: str) -> Any:
    """Convert text to the option's type; text that is no number stays text, to be refused later."""
    if name == "mcq":
        return tuple(part for part in text.split(os.pathsep) if part)
    kind = bool if name in ("resume", "json") else value_type(name)
    if kind is bool and (word := text.strip().lower()) in TRUE_WORDS + FALSE_WORDS:
        return word in TRUE_WORDS
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def value_type(name: str) -> type:
    """Return the type of a field, besides None: bool, int, float, str or tuple."""
    annotation = RunConfig.model_fields[name].annotation if name in RunConfig.model_fields else str
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        return tuple
    return annotation if annotation in (bool, int, float) else str


def _check_values(values: Mapping[str, Any], where: str) -> None:
    """Validate one source's values while its name is known."""
    for name, kind, needs in _PLACE_TYPES:
        if not isinstance(values.get(name), kind | None):
            got = Message("error_found", {"value": repr(values[name])})
            raise InputError(f"{where}, {name}", got, f"expected {needs}")
    fields = {name: value for name, value in values.items() if name not in PLACE_OPTIONS}
    if "preset" in fields and fields["preset"] not in ("auto", *PRESETS):
        known = ["auto", *PRESETS]
        needs = f"expected one of {', '.join(known)}{nearest(str(fields['preset']), known)}"
        raise InputError(f"{where}, preset", f"found {fields['preset']!r}", needs)
    build_config(_complete(fields), where)


def _complete(fields: dict[str, Any]) -> dict[str, Any]:
    """Add a length of training, which a single source may lack."""
    if fields.get("steps", 1) is None and fields.get("epochs") is None:
        return fields | {"epochs": 1.0}
    return fields


def _override(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``upper`` over ``lower``; ``steps`` and ``epochs`` replace each other."""
    kept = dict(lower)
    if any(upper.get(name) is not None for name in ("steps", "epochs")):
        kept.pop("steps", None)
        kept.pop("epochs", None)
    return kept | dict(upper)
