"""Device figures read one step late, so that the host never waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Deferred"]


class Deferred:
    """Numbers on their way from the device to the host: copied when made, read when a later step asks for them.

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
        """The numbers; waits only if the device is still more than the asked-for step behind."""
        if self.event is not None:
            self.event.synchronize()
        return dict(zip(self.names, self.host.tolist()))
