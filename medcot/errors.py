"""The two ways a command can end badly, and how each is said in one line."""

from __future__ import annotations

from difflib import get_close_matches


class InputError(Exception):
    """Something that the user gave is wrong: one line, exit code 2, nothing lost.

    ``where`` names the option, file, row or field; ``got`` what was found there; ``needs`` what
    would have been right.
    """

    def __init__(self, where: str, got: str, needs: str) -> None:
        self.where, self.got, self.needs = where, got, needs
        super().__init__(f"{where}: got {one_line(got)}; needs {needs}")


class RunFailed(Exception):
    """A stage of a run could not finish: one line and what to do, exit code 1, ``error.json``."""

    def __init__(self, stage: str, message: str, remedy: str) -> None:
        self.stage, self.message, self.remedy = stage, message, remedy
        super().__init__(f"{stage}: {message} {remedy}".strip())


class Cancelled(Exception):
    """The user asked to stop: everything done so far is kept, exit code 130."""


def one_line(text: str, width: int = 160) -> str:
    """``text`` with its whitespace folded, shortened to ``width`` characters."""
    folded = " ".join(str(text).split())
    return folded if len(folded) <= width else folded[: width - 1] + "…"


def nearest(name: str, known: list[str]) -> str:
    """`` (did you mean X?)`` for the closest of ``known``, or nothing."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
