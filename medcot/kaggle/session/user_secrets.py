"""Find the secrets that a kernel is given: environment, Kaggle's secret store, private data set.

Named so because ``secrets`` is a module of the standard library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcot.credentials import decode_text, strip_secret

HUB_LABELS = ("HUGGINGFACE_TOKEN", "HF_TOKEN")
WANDB_LABELS = ("WANDB_API_KEY", "wandb")
"""Labels under which the two secrets are looked up, the first being the one that is recommended."""


@dataclass(frozen=True, slots=True)
class SecretNeed:
    """A secret that a run can use: the variable that libraries read, and the labels it may have.

    ``without`` says what happens without it.
    """

    variable: str
    labels: tuple[str, ...]
    without: str


@dataclass(frozen=True, slots=True)
class SecretLookup:
    """The result of looking for one secret.

    ``value`` is None if it was not found; ``why`` says where it was found, or why not.
    """

    need: SecretNeed
    why: str
    value: str | None = field(default=None, repr=False)

    @property
    def line(self) -> str:
        """One line for the log, without the value."""
        label = self.need.labels[0]
        if self.value is not None:
            return f"{label}: ok ({self.why})"
        return f"{label}: {self.why}; {self.need.without}"


class SecretNotAttached(Exception):
    """Report that the secret store has no such secret for this kernel; the message says why."""


GetSecret = Callable[[str], str]
"""Takes a label and returns the value; raises :class:`SecretNotAttached`."""


def secret_needs(
    hub: Sequence[str] = HUB_LABELS, wandb: Sequence[str] = WANDB_LABELS
) -> list[SecretNeed]:
    """Return the two secrets that a run can use, under the labels that the user gave them."""
    return [
        SecretNeed("HF_TOKEN", tuple(hub), "public models only, and no upload to the hub"),
        SecretNeed(
            "WANDB_API_KEY", tuple(wandb), "W&B writes offline, to be synced after the fetch"
        ),
    ]


def find_secret(
    need: SecretNeed,
    environ: Mapping[str, str],
    get_secret: GetSecret,
    folders: Sequence[Path] = (),
) -> SecretLookup:
    """Look for ``need`` in the environment, then the secret store, then the files of ``folders``.

    A data set holds one file per secret, named by its label (``wandb`` or ``wandb.txt``).
    """
    for name in (need.variable, *need.labels):
        if value := strip_secret(environ.get(name, "")):
            return SecretLookup(need, f"environment, {name}", value)
    why = "not attached"
    for label in need.labels:
        try:
            value = strip_secret(get_secret(label))
        except SecretNotAttached as error:
            why = str(error)
            continue
        if value:
            return SecretLookup(need, f"Kaggle secret, {label}", value)
        why = "empty"
    for folder in folders:
        for label in need.labels:
            for path in (folder / label, folder / f"{label}.txt"):
                value = strip_secret(decode_text(path.read_bytes())) if path.is_file() else ""
                if value:
                    return SecretLookup(need, f"private data set, {path.name}", value)
    return SecretLookup(need, why)


def get_kaggle_secret(label: str, tries: int = 2, wait_s: float = 1.0) -> str:
    """Return the value of the attached secret ``label``.

    Kaggle's own client raises ``BackendError`` if the secret is not attached, ``CredentialError``
    if the session has no token, and ``ConnectionError`` for every HTTP error and without internet.
    Only the last can be temporary, so only that is retried.

    Raises:
        SecretNotAttached: there is none; the message says why and contains nothing of the answer.
    """
    try:
        from kaggle_secrets import UserSecretsClient  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SecretNotAttached("not attached (no kaggle_secrets on this machine)") from None
    for left in reversed(range(tries)):
        try:
            return UserSecretsClient().get_secret(label)
        except ConnectionError:
            if not left:
                raise SecretNotAttached(
                    "the secret store did not answer; is internet on?"
                ) from None
            time.sleep(wait_s)
        except Exception as error:  # noqa: BLE001 - its classes exist only on Kaggle
            raise SecretNotAttached(_reason(type(error).__name__)) from None
    raise SecretNotAttached("not attached")


def _reason(kind: str) -> str:
    if kind == "CredentialError":
        return "not attached (this session has no token for the secret store)"
    return "not attached"
