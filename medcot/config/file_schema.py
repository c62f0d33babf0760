"""Writes files of options, and their JSON schema, by which editors complete and check them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from copy import deepcopy
from typing import Any

from medcot.config.schema import ARM_THOUGHTS, COLUMNS, RunConfig

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLACES: dict[str, dict[str, Any]] = {
    "out": {"type": "string", "description": "run directory"},
    "resume": {"type": "boolean", "description": "continue an interrupted run"},
    "json": {"type": "boolean", "description": "print facts as JSON"},
}
_PART = rf"({'|'.join(COLUMNS)}) *= *[^,]+"
_PATTERNS = {
    "columns": rf"^( *|{_PART}(, *{_PART})*)$",
    "target_modules": "^( *|[A-Za-z_][A-Za-z0-9_]*( *, *[A-Za-z_][A-Za-z0-9_]*)*)$",
}
"""How the texts of some fields are built."""
_ONE_LENGTH = {
    "not": {
        "required": ["steps", "epochs"],
        "properties": {"steps": {"type": "integer"}, "epochs": {"type": "number"}},
    }
}
"""Refuses ``steps`` and ``epochs`` together, as a run does; a run's own file has one as null."""


def describe_file(varied: Collection[str] = ()) -> dict[str, Any]:
    """Return the JSON schema of a file of options: of a run or, with ``varied``, of a study.

    Names may be written with ``_`` or with ``-``. There are no defaults: they are the preset's.

    Args:
        varied: Names of the fields that the arms of a study may differ in.
    """
    fields = RunConfig.model_json_schema()["properties"]
    properties = {name: _describe_field(name, field) for name, field in fields.items()}
    properties |= deepcopy(_PLACES)
    dashed = _allow_dashes(properties, "#/properties")
    if varied:
        properties["vary"] = _describe_vary(varied)
    return {
        "$schema": _DIALECT,
        "title": "Options of medcot study FILE"
        if varied
        else "Options of medcot run --config FILE",
        "type": "object",
        "properties": properties,
        "patternProperties": dashed,
        "additionalProperties": False,
        **_ONE_LENGTH,
    }


def write_options(config: RunConfig) -> Iterator[str]:
    """Yield the lines of a TOML file of options that gives ``config`` again."""
    for name, field in RunConfig.model_fields.items():
        value = getattr(config, name)
        if value is not None:
            # Of text, lists, numbers and truth values, TOML reads what JSON writes.
            plain = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            yield f"{name} = {plain}  # {field.description}"


def _describe_field(name: str, found: dict[str, Any]) -> dict[str, Any]:
    field = {key: value for key, value in found.items() if key not in ("default", "shown", "title")}
    if name in ("mcq", "dataset"):
        text = {"type": "string", "minLength": 1}
        several = {"type": "array", "items": text, "minItems": 1 if name == "dataset" else 0}
        field = {"description": field["description"], "anyOf": [text, several]}
    if name in _PATTERNS:
        field["pattern"] = _PATTERNS[name]
    return field


def _describe_vary(names: Collection[str]) -> dict[str, Any]:
    """Describe the table ``[vary]``: two values or more of each field that arms may differ in."""
    lists = {
        name: {
            "type": "array",
            "minItems": 2,
            "uniqueItems": True,
            "items": {"enum": [*ARM_THOUGHTS]}
            if name == "thought"
            else {"$ref": f"#/properties/{name}"},
        }
        for name in names
    }
    return {
        "type": "object",
        "description": "values that arms differ in",
        "minProperties": 1,
        "properties": lists,
        "patternProperties": _allow_dashes(lists, "#/properties/vary/properties"),
        "additionalProperties": False,
    }


def _allow_dashes(names: Collection[str], place: str) -> dict[str, Any]:
    """Let ``learning-rate`` be what ``learning_rate`` is."""
    several = (name for name in names if "_" in name)
    return {f"^{name.replace('_', '-')}$": {"$ref": f"{place}/{name}"} for name in several}
