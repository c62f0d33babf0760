"""The message catalog: every text that is shown in English and Chinese, by code.

``words_en.toml`` and ``words_zh.toml`` hold one template per code, with named placeholders and
their number formats; the packages in :data:`CATALOGS` have files of their own. A :class:`Message`
is a code with its values; it becomes a sentence only where it is shown. This module is on the
lowest floor and imports nothing of medcot.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Self, cast

CATALOGS = ("", "comparing", "evaluation", "exporting", "notebook", "reporting", "serving")
"""Folders with a catalog. Texts that no kernel shows are in one that is not sent to Kaggle."""


@dataclass(frozen=True, slots=True)
class Message:
    """A code of the catalog with the values of its placeholders.

    A value may be a message itself; it is then rendered in the language of the whole. ``str()``
    gives the English text.
    """

    code: str
    values: Mapping[str, str | int | float | Message] = field(default_factory=dict[str, Any])

    def text(self, language: str) -> str:
        """Render the message in ``language``, ``en`` or ``zh``.

        Raises:
            KeyError: the catalog lacks the code, or the values lack a placeholder.
        """
        return say(self.code, language, **self.values)

    def __str__(self) -> str:
        return self.text("en")

    def __hash__(self) -> int:
        return hash(self.code)

    def to_json(self) -> dict[str, Any]:
        """Return code and values as JSON data, with the English text for whoever reads the file."""
        values = {
            name: value.to_json() if isinstance(value, Message) else value
            for name, value in self.values.items()
        }
        return {"code": self.code, "values": values, "text": str(self)}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the JSON form, or the plain English text of a file written before 0.2."""
        if not isinstance(data, Mapping):
            return cls("plain", {"text": str(data)})
        entry = cast("Mapping[str, Any]", data)
        values = {
            name: Message.from_json(cast("object", value)) if isinstance(value, Mapping) else value
            for name, value in entry["values"].items()
        }
        return cls(entry["code"], values)


@dataclass(frozen=True, slots=True)
class Reason(Message):
    """Say why a decision of the planner, or the choice of a preset, fell as it did."""

    __hash__ = Message.__hash__


def say(code: str, language: str, /, **values: str | int | float | Message) -> str:
    """Render the template of ``code`` in ``language`` with ``values``.

    Templates are format strings; ``{name!c}`` capitalises the first letter of its value.

    Raises:
        KeyError: the catalog lacks the code, or the values lack a placeholder.
    """
    rendered = {name: in_language(value, language) for name, value in values.items()}
    return _FORMATTER.vformat(words(language)[code], (), rendered)


def in_language(value: object, language: str) -> Any:
    """Render ``value`` in ``language`` if it is a message; return anything else as it is."""
    return value.text(language) if isinstance(value, Message) else value


def either(options: Sequence[str | Message]) -> str | Message:
    """Join one to three alternatives: ``A``, ``A or B``, ``A or B or C``."""
    if len(options) == 1:
        return options[0]
    names = ("first", "second", "third")[: len(options)]
    return Message(f"either_{len(options)}", dict(zip(names, options, strict=True)))


def duration(seconds: float, language: str) -> str:
    """Render a time as a person says it: in seconds, minutes, hours or days."""
    return duration_message(seconds).text(language)


def duration_message(seconds: float) -> Message:
    """Return a time as a person says it, to be rendered where the language is known."""
    if seconds < 90:
        return Message("seconds", {"n": f"{seconds:.0f}"})
    if seconds < 5400:
        return Message("minutes", {"n": f"{seconds / 60:.0f}"})
    if seconds < 48 * 3600:
        return Message("hours", {"n": f"{seconds / 3600:.1f}"})
    return Message("days", {"n": f"{seconds / 86400:,.0f}"})


@cache
def words(language: str) -> dict[str, str]:
    """Return all templates of ``language`` by code."""
    found: dict[str, str] = {}
    for place in CATALOGS:
        source = files("medcot").joinpath(place, f"words_{language}.toml")
        if source.is_file():
            found |= tomllib.loads(source.read_text(encoding="utf-8"))
    return found


class _CatalogFormatter(string.Formatter):
    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion != "c":
            return super().convert_field(value, conversion)
        text = str(value)
        return text[:1].upper() + text[1:]


_FORMATTER = _CatalogFormatter()
