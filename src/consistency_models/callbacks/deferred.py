"""Device values that are read one step late, so that the host does not wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Deferred"]


class Deferred:
    """Asynchronous copy of scalars from the device to the host. The copy starts here; a later step calls `read`.

    Args:
        values: scalar tensors by name, on one device.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.names = list(values)
        stacked = torch.stack([value.detach().float() for value in values.values()])
        self.event = None
        self.host = stacked
        if stacked.is_cuda:
            self.host = torch.empty(stacked.shape, pin_memory=True).copy_(stacked, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> dict[str, float]:
        """Return the values; waits only if the device has not reached the copy."""
        if self.event is not None:
            self.event.synchronize()
        return dict(zip(self.names, self.host.tolist()))
