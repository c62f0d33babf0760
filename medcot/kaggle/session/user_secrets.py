"""Where a kernel finds its secrets: the environment, Kaggle's secret store, a private data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HUB_LABELS = ("HUGGINGFACE_TOKEN", "HF_TOKEN")
WANDB_LABELS = ("WANDB_API_KEY", "wandb")


@dataclass(frozen=True, slots=True)
class Need:
    """A secret that a run can use: the variable libraries read, and the labels it may have."""

    variable: str
    labels: tuple[str, ...]
    without: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """What became of one need. ``value`` is None if not found; ``why`` says where, or why not."""

    need: Need
    why: str
    value: str | None = field(default=None, repr=False)

    @property
    def line(self) -> str:
        """One line for the log; never the value."""
        label = self.need.labels[0]
        if self.value is not None:
            return f"{label}: ok ({self.why})"
        return f"{label}: {self.why}; {self.need.without}"


class NotAttached(Exception):
    """The secret store has no such secret for this kernel; the message says why."""


Ask = Callable[[str], str]
"""A label in, its value out; raises :class:`NotAttached`."""


def needs(hub: Sequence[str] = HUB_LABELS, wandb: Sequence[str] = WANDB_LABELS) -> list[Need]:
    """The two secrets a run can use, under the labels the user gave them."""
    return [
        Need("HF_TOKEN", tuple(hub), "public models only, and no upload to the hub"),
        Need("WANDB_API_KEY", tuple(wandb), "W&B writes offline, to be synced after the fetch"),
    ]


def look_up(
    need: Need, environ: Mapping[str, str], ask: Ask, folders: Sequence[Path] = ()
) -> Lookup:
    """Find ``need`` in the environment, then the secret store, then the files of ``folders``.

    A data set holds one file per secret, named by its label (``wandb`` or ``wandb.txt``).
    """
    for name in (need.variable, *need.labels):
        if value := environ.get(name, "").strip():
            return Lookup(need, f"environment, {name}", value)
    why = "not attached"
    for label in need.labels:
        try:
            return Lookup(need, f"Kaggle secret, {label}", ask(label).strip())
        except NotAttached as error:
            why = str(error)
    for folder in folders:
        for label in need.labels:
            for path in (folder / label, folder / f"{label}.txt"):
                if path.is_file() and (value := path.read_text(encoding="utf-8").strip()):
                    return Lookup(need, f"private data set, {path.name}", value)
    return Lookup(need, why)


def ask_kaggle(label: str, tries: int = 2, wait_s: float = 1.0) -> str:
    """The value of the attached secret ``label``.

    Kaggle's own client raises ``BackendError`` where a secret is not attached, ``CredentialError``
    where the session has no token, and ``ConnectionError`` for every HTTP error as well as for
    no internet: only the last can pass by itself, so only it is tried again.

    Raises:
        NotAttached: there is none; the message says why and holds nothing of the answer.
    """
    try:
        from kaggle_secrets import UserSecretsClient  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise NotAttached("not attached (no kaggle_secrets on this machine)") from None
    for left in reversed(range(tries)):
        try:
            return UserSecretsClient().get_secret(label)
        except ConnectionError:
            if not left:
                raise NotAttached("the secret store did not answer; is internet on?") from None
            time.sleep(wait_s)
        except Exception as error:  # noqa: BLE001 - its classes exist on Kaggle alone
            raise NotAttached(_reason(type(error).__name__)) from None
    raise NotAttached("not attached")


def _reason(kind: str) -> str:
    if kind == "CredentialError":
        return "not attached (this session has no token for the secret store)"
    return "not attached"
