"""The options of the commands to Kaggle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from medcot.kaggle.client.build import CodePlace, KernelOptions
from medcot.kaggle.client.metadata import TITLE, KernelType
from medcot.kaggle.session.job import JobSpec
from medcot.kaggle.session.user_secrets import HUB_LABELS, WANDB_LABELS

Command = Callable[..., Any]

OWNER = click.option("--owner", metavar="NAME", help="Kaggle user name (default: the account's)")
OUT = click.option("--out", metavar="DIR", help="run directory (default: the newest in runs/)")
JSON = click.option("--json", "as_json", is_flag=True, help="print facts as JSON")
AGAIN = click.option("--again", is_flag=True, help="push the same bundle once more")
FOLLOW = click.option("--follow/--no-follow", default=True, help="show the live log")
INTERVAL = click.option(
    "--interval",
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="between two status requests",
)
RETRY = click.option(
    "--retry",
    "retry_min",
    default=30.0,
    show_default=True,
    metavar="MINUTES",
    help="how long to retry without an answer",
)

_NAMED = [
    click.option("--title", default=TITLE, show_default=True, help="the kernel's title"),
    click.option("--hub-label", multiple=True, help="label of the hub's secret (repeatable)"),
    click.option("--wandb-label", multiple=True, help="label of the W&B secret (repeatable)"),
    click.option(
        "--secrets-dataset",
        default="",
        metavar="OWNER/NAME",
        help="private data set with the secrets, one file each",
    ),
]
_SESSION = [
    click.option("--gpu/--cpu", default=None, help="machine (default: by the preset)"),
    click.option("--public", is_flag=True, help="let everyone see the kernel"),
    click.option(
        "--hours", default=12.0, show_default=True, metavar="HOURS", help="longest session"
    ),
    click.option(
        "--margin",
        default=15.0,
        show_default=True,
        metavar="MINUTES",
        help="kept of the session for saving",
    ),
    click.option(
        "--code",
        type=click.Choice(get_args(CodePlace)),
        help="where medcot's sources are (default: in the kernel, unless it becomes too large)",
    ),
    click.option(
        "--as",
        "kind",
        type=click.Choice(get_args(KernelType)),
        default="script",
        show_default=True,
        help="what Kaggle shows: a script, or a notebook that ends with the report",
    ),
    click.option("--hub-repo", default="", metavar="OWNER/NAME", help="upload the adapter there"),
]


class OrderedGroup(click.Group):
    """Lists commands in the order of their definition, which is that of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of their definition."""
        return list(self.commands)


def add_naming_options(command: Command) -> Command:
    """Give ``command`` the options that name a kernel and its secrets."""
    for option in reversed(_NAMED):
        command = option(command)
    return command


def add_kernel_options(command: Command) -> Command:
    """Give ``command`` the options of :func:`add_naming_options` and of a training session."""
    for option in reversed(_SESSION):
        command = option(command)
    return add_naming_options(command)


def take_kernel_options(flags: dict[str, Any]) -> KernelOptions:
    """Remove the kernel's options from ``flags``, which keeps those of the run, and return them."""
    default = KernelOptions()
    return KernelOptions(
        title=flags.pop("title"),
        gpu=flags.pop("gpu", default.gpu),
        public=flags.pop("public", default.public),
        limit_s=round(flags.pop("hours", default.limit_s / 3600) * 3600),
        margin_s=round(flags.pop("margin", default.margin_s / 60) * 60),
        code=flags.pop("code", default.code),
        kind=flags.pop("kind", default.kind),
        job=JobSpec(
            hub_labels=flags.pop("hub_label") or HUB_LABELS,
            wandb_labels=flags.pop("wandb_label") or WANDB_LABELS,
            secrets_dataset=flags.pop("secrets_dataset"),
            hub_repository=flags.pop("hub_repo", ""),
        ),
    )
