"""The short words of pages and figures, in English and Chinese, by key."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

from medcot.config.schema import RunConfig


@cache
def words(language: str) -> dict[str, str]:
    """All of them in ``language``."""
    source = files("medcot.notebook.views") / f"words_{language}.toml"
    return tomllib.loads(source.read_text(encoding="utf-8"))


def say(key: str, language: str, **values: object) -> str:
    """The words of ``key``, with ``values`` put in."""
    return words(language)[key].format(**values)


def explain(field: str, language: str) -> str:
    """What a setting is: the field's own description, in English as `RunConfig` has it."""
    known = RunConfig.model_fields.get(field)
    if language != "en" or known is None:
        return say(f"help_{field}", language)
    description = known.description or ""
    return f"{description[:1].upper()}{description[1:]}."


def duration(seconds: float, language: str) -> str:
    """A time as a person says it: seconds, minutes, hours or days."""
    if seconds < 90:
        return say("seconds", language, n=f"{seconds:.0f}")
    if seconds < 5400:
        return say("minutes", language, n=f"{seconds / 60:.0f}")
    if seconds < 48 * 3600:
        return say("hours", language, n=f"{seconds / 3600:.1f}")
    return say("days", language, n=f"{seconds / 86400:,.0f}")
