"""Available memory, the memory that a computation needs, and the peak of a process."""

from __future__ import annotations

import os
import resource
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PeakMemory", "available_bytes", "later_bytes", "peak_bytes", "peak_of"]

CGROUP = Path("/sys/fs/cgroup")
FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))  # v2, v1


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of live tensors that are created within the block.

    The count includes torch's tensors on any device. It does not include work space of libraries within an operation.

    Attributes:
        trace: bytes of live tensors after each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[int] = []
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.trace.append(self._now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


def peak_of(n: int, one: list[int], two: list[int]) -> int:
    """Extrapolate the bytes of n images from the traces of one and two images:  max_i one_i + (n - 1)·(two_i - one_i).

    The maximum is over operations, since the peak of a large batch can be at another operation. If the traces differ in
    length, the result is n/2 times the peak of two images.
    """
    if len(one) != len(two):
        return -(-n * max(two) // 2)
    return max(first + (n - 1) * (second - first) for first, second in zip(one, two))


def later_bytes(module: nn.Module, averages: int) -> int:
    """Bytes that are allocated after the first pass: two numbers per weight in the optimiser, and the averages."""
    return (2 + averages) * sum(p.nbytes for p in module.parameters() if p.requires_grad)


def peak_bytes(device: torch.device | str) -> int:
    """Largest memory that was allocated on a GPU, or that this process had since its start."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_bytes(device: torch.device) -> int:
    """Memory that this process can still allocate on the device; on a CPU also limited by the process's cgroup."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_machine_bytes(), _cgroup_bytes())


def _machine_bytes() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: half of the physical memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup_bytes() -> int:
    """Memory left below the limit of the process's container or Slurm job; file caches count as free."""
    free = [2**63]
    for limit_file, usage_file in FILES:
        for folder in _cgroup_folders(limit_file):
            try:
                limit = int((folder / Path(limit_file).name).read_text())
                usage = int((folder / Path(usage_file).name).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such controller, or "max"
                continue
            cache = int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))
            free.append(max(0, limit - usage + cache))
    return min(free)


def _cgroup_folders(limit_file: str) -> list[Path]:
    """The visible folders of the process's cgroup and its ancestors."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    controller = str(Path(limit_file).parent) if "/" in limit_file else ""
    root = CGROUP / controller
    folders = [root]
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            own = root / path.lstrip("/")
            folders += [folder for folder in (own, *own.parents) if root in folder.parents]
    return folders
