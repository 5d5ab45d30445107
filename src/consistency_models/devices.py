"""The device that a command names."""

from __future__ import annotations

import torch

from consistency_models.errors import ConfigError

__all__ = ["chosen_device"]


def chosen_device(name: str, key: str = "device") -> str:
    """Return the device; auto selects a GPU if there is one.

    Args:
        name: auto, or a device of torch.
        key: the key or flag of the command, for the error.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(key, name, "auto, or a device of this machine", reason=reason) from error
    return name
