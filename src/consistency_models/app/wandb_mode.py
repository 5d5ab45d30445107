"""Whether a run is logged to the server of Weights & Biases, and the variables that W&B reads."""

from __future__ import annotations

import logging
import netrc
import os
import socket
from urllib.parse import urlparse

from consistency_models.errors import ConfigError

log = logging.getLogger(__name__)

__all__ = ["check_variables", "wandb_mode"]


def check_variables() -> None:
    """Check all variables WANDB_….

    Raises:
        ConfigError: W&B does not accept the value of a variable.
    """
    import wandb
    from pydantic import ValidationError

    for name, value in os.environ.items():
        if name.startswith("WANDB_"):
            try:
                wandb.Settings().update_from_env_vars({name: value})
            except (ValidationError, wandb.Error) as error:
                text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                reason, allowed = f"W&B says: {text}", "a value that W&B accepts"
                if text.startswith("Input should be "):
                    reason, allowed = "", text.removeprefix("Input should be ")
                shown = "…" if "KEY" in name else value  # a secret
                raise ConfigError(name, shown, allowed, "correct or unset the variable", reason=reason) from None


def wandb_mode(mode: str) -> str:
    """Resolve the mode "auto": "online" if the user is logged in and the server answers, otherwise "offline".

    WANDB_MODE overrides the argument. Without a key, W&B prompts or fails; with a key, W&B waits 90 s for a server.
    """
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if mode != "auto":
        return mode
    address = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    key = os.environ.get("WANDB_API_KEY")
    if not key:
        try:
            key = netrc.netrc().authenticators(address.hostname or "")
        except (OSError, netrc.NetrcParseError):
            key = None
    if not key:
        return "offline"
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=2).close()
    except OSError:
        log.warning("wandb: %s does not answer; logging offline", address.hostname)
        return "offline"
    return "online"
