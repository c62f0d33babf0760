"""The flags of a command that makes a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from medcot.remote.build import Wishes
from medcot.remote.bundle import Orders
from medcot.remote.metadata import TITLE
from medcot.remote.secrets import HUB_LABELS, WANDB_LABELS

Command = Callable[..., Any]

_FLAGS = [
    click.option("--title", default=TITLE, show_default=True, help="the kernel's title"),
    click.option("--gpu/--cpu", default=None, help="machine (default: by the preset)"),
    click.option("--public", is_flag=True, help="let everyone see the kernel"),
    click.option("--hours", default=12.0, show_default=True, help="longest session"),
    click.option("--margin", default=15.0, show_default=True, help="minutes kept for saving"),
    click.option("--as-dataset", is_flag=True, help="send the bundle as a private data set"),
    click.option("--hub-label", multiple=True, help="label of the hub's secret"),
    click.option("--wandb-label", multiple=True, help="label of the W&B secret"),
    click.option("--secrets-dataset", default="", metavar="OWNER/NAME", help="private data set"),
    click.option("--hub-repo", default="", metavar="OWNER/NAME", help="upload the adapter there"),
]
_NAMES = (
    "title",
    "gpu",
    "public",
    "hours",
    "margin",
    "as_dataset",
    "hub_label",
    "wandb_label",
    "secrets_dataset",
    "hub_repo",
)


def kernel_flags(command: Command) -> Command:
    """Give ``command`` the kernel's flags."""
    for option in reversed(_FLAGS):
        command = option(command)
    return command


def take_wishes(flags: dict[str, Any]) -> Wishes:
    """Take the kernel's flags out of ``flags``; what stays is the run's."""
    kernel = {name: flags.pop(name) for name in _NAMES}
    return Wishes(
        title=kernel["title"],
        gpu=kernel["gpu"],
        public=kernel["public"],
        limit_s=round(kernel["hours"] * 3600),
        margin_s=round(kernel["margin"] * 60),
        as_dataset=kernel["as_dataset"],
        orders=Orders(
            hub_labels=kernel["hub_label"] or HUB_LABELS,
            wandb_labels=kernel["wandb_label"] or WANDB_LABELS,
            secrets_dataset=kernel["secrets_dataset"],
            hub_repository=kernel["hub_repo"],
        ),
    )
