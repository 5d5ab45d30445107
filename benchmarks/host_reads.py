"""Counts the operations by which the host reads a number from the device, and therefore waits for the device.

Works without a device: tensors that are computed from the weights, the images or the levels of a step count as device
tensors, and tensors that are drawn on the host count as host tensors. On a GPU, torch counts
(`torch.cuda.set_sync_debug_mode`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from consistency_models.callbacks.deferred import Deferred
from consistency_models.noise.schedules import Levels

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten._unique2, aten.unique_dim}
MASKED = {aten.index, aten.index_put, aten.index_put_}
PYTHON_READS = {Tensor.tolist, Tensor.numpy, Tensor.cpu}  # these dispatch no operation if the device is the CPU


class HostReads(TorchDispatchMode):
    """Collects in `names` the operations by which the host reads device tensors, while the mode is active.

    The mode tracks memory instead of tensors, so that views and in-place results count as device tensors, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.paused = False
        self._on_device: set[int] = set()

    def on_device(self, *tensors: Tensor | None) -> None:
        """Mark tensors as device tensors."""
        self._on_device |= {_memory(tensor) for tensor in tensors if tensor is not None}

    def is_on_device(self, tensor: Any) -> bool:
        """Whether a tensor counts as a device tensor."""
        return _has_memory(tensor) and _memory(tensor) in self._on_device

    def note(self, name: str) -> None:
        """Record that the host reads a device tensor."""
        if not self.paused:
            self.names.append(name)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Check one operation; torch calls this method for every operation while the mode is active."""
        inputs = tree_leaves((args, kwargs))
        device = any(map(self.is_on_device, inputs))
        packet = function.overloadpacket
        masks = packet in MASKED and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in tree_leaves(args[1]))
        if device and (packet in READS or masks):
            self.note(packet.__name__)
        out = function(*args, **kwargs or {})
        for tensor in tree_leaves(out):
            if _has_memory(tensor):  # memory can be reused, so results of host tensors are unmarked
                (self._on_device.add if device else self._on_device.discard)(_memory(tensor))
        return out


class _PythonReads(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in PYTHON_READS and self.reads.is_on_device(args[0]):
            self.reads.note(function.__name__)
        return function(*args, **kwargs or {})


@contextmanager
def host_reads(method: torch.nn.Module, device: str) -> Iterator[list[str]]:
    """Collect the names of reads in the block, without those of `Deferred`, whose copy started a step earlier."""
    if device == "cuda":
        names: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield names
            finally:
                torch.cuda.set_sync_debug_mode("default")
        names += [str(w.message) for w in caught if "synchronizing CUDA operation" in str(w.message)]
        return
    reads, move, read, step = HostReads(), Levels.to, Deferred.read, method.training_step

    def moved(levels: Levels, *args: Any, **named: Any) -> Levels:
        levels = move(levels, *args, **named)
        copies = {k: None if v is None else v.clone() for k, v in vars(levels).items() if k not in ("index", "grid")}
        reads.on_device(*copies.values())
        return replace(levels, **copies)

    def late(deferred: Deferred) -> dict[str, float]:
        reads.paused = True
        try:
            return read(deferred)
        finally:
            reads.paused = False

    def training_step(batch: Any, *index: int) -> Tensor:
        reads.on_device(batch.images, batch.labels, *method.parameters(), *method.buffers())
        return step(batch, *index)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Levels, "to", moved))
        stack.enter_context(patch.object(Deferred, "read", late))
        stack.enter_context(patch.object(method, "training_step", training_step))
        stack.enter_context(reads)
        stack.enter_context(_PythonReads(reads))
        yield reads.names


def _has_memory(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and not tensor._is_zerotensor()  # the derivative of a constant


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
