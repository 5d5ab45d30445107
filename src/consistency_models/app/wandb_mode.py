"""Whether a run is logged to the server of Weights & Biases."""

from __future__ import annotations

import logging
import netrc
import os
import socket
from urllib.parse import urlparse

log = logging.getLogger(__name__)

__all__ = ["wandb_mode"]


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
