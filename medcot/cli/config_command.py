"""Defines the commands that take every field of `RunConfig` as a flag.

`RunConfig` takes longer to import than all other parts of ``medcot --help`` together, so the flags
are made when such a command is used.
"""

from __future__ import annotations

from typing import Any

import click


class ConfigCommand(click.Command):
    """Adds a flag for each field of `RunConfig`, and the shared flags, to the command's own.

    Without ``places`` the shared flags name no place: there is no run directory.
    """

    def __init__(self, *arguments: Any, places: bool = True, **options: Any) -> None:
        self._places, self._has_flags = places, False
        super().__init__(*arguments, **options)

    @property
    def params(self) -> list[click.Parameter]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the command's own parameters and then the flags: one list, which click changes."""
        if not self._has_flags:
            from medcot.cli.options import list_flags

            self._has_flags = True
            self._params += list_flags(places=self._places)
        return self._params

    @params.setter
    def params(self, own: list[click.Parameter]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._params = own
