"""The records that the client sends to a session: its job, and the settings that it acts on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medcot.kaggle.session.user_secrets import HUB_LABELS, WANDB_LABELS

JOB_FILE, CONFIG_FILE = "job.json", "config.json"
"""Names in the bundle."""

Task = Literal["run", "secrets", "probe"]
"""Train and report, only look which secrets the kernel is given, or look at the image as well."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a session does with the run's config.

    ``limit_s`` is the session's length and ``margin_s`` the part of it that is kept for saving.
    ``session`` counts from 1; later ones continue from the output of ``previous``, the kernel's own
    name. ``unused`` are packages of the project's extras that the run does not import. ``run`` is
    the key that the sessions of one run share; the bundle fills it in.
    """

    task: Task = "run"
    gpu: bool = False
    limit_s: int = 12 * 3600
    margin_s: int = 900
    session: int = 1
    previous: str = ""
    hub_labels: tuple[str, ...] = HUB_LABELS
    wandb_labels: tuple[str, ...] = WANDB_LABELS
    secrets_dataset: str = ""
    hub_repository: str = ""
    unused: tuple[str, ...] = ()
    run: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form that the bundle carries."""
        return asdict(self)


def read_job(text: str) -> JobSpec:
    """Read what :meth:`JobSpec.to_json` gave.

    Raises:
        KeyError, TypeError, ValueError: the bundle was written by another version.
    """
    values: dict[str, Any] = json.loads(text)
    for name in ("hub_labels", "wandb_labels", "unused"):
        values[name] = tuple(values[name])
    return JobSpec(**values)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of the run's config that a session acts on; the run itself reads all of it."""

    preset: str
    model: str
    wandb: str
    batch: int
    engine: str = "auto"
    seeds: int = 1


def read_settings(text: str) -> RunSettings:
    """Pick the settings out of ``config.json``, which only the training validates."""
    config: dict[str, Any] = json.loads(text)
    names = ("preset", "model", "wandb", "batch", "engine")
    return RunSettings(*(config[name] for name in names), seeds=config.get("seeds", 1))
