"""Finds credentials in the environment and the tools' stored logins; never asks for them."""

from __future__ import annotations

import os
from pathlib import Path

TOKENS = ("HF_TOKEN", "HUGGINGFACE_TOKEN")
"""Variables that may hold a hub token; they precede the client's stored login."""


def hub_token() -> str | None:
    """Return the environment's token, or None: the client then uses its stored login."""
    return next((os.environ[name] for name in TOKENS if os.environ.get(name)), None)


def use_hub_token() -> None:
    """Pass ``HUGGINGFACE_TOKEN`` on to the hub's libraries, which read ``HF_TOKEN``."""
    if token := os.environ.get("HUGGINGFACE_TOKEN", "").strip():
        os.environ.setdefault("HF_TOKEN", token)


def has_hub_token() -> bool:
    """Return whether the hub's libraries will find a token."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    stored = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    named = any(os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGINGFACE_TOKEN"))
    return named or stored.is_file()


def has_wandb_login() -> bool:
    """Return whether the W&B client will find a key, in the environment or the netrc file."""
    if os.environ.get("WANDB_API_KEY", "").strip():
        return True
    from netrc import NetrcParseError, netrc

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return path.is_file() and netrc(str(path)).authenticators(host.split(":")[0]) is not None
    except (NetrcParseError, OSError):
        return False
