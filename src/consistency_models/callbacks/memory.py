"""How much memory there is, and how much a computation needs."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PeakMemory", "available_bytes", "peak_of"]

CGROUP = Path("/sys/fs/cgroup")
FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))  # v2, v1


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within the block and alive at the same time.

    The count is of torch's tensors on any device. Work space that a library takes for one operation is not in it.

    Attributes:
        trace: bytes after each operation.
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
    """Bytes that n images need, by the traces of one image and of two:  max_i one_i + (n - 1)·(two_i - one_i).

    The maximum is over operations, since the operation that needs most is another one in a large batch. Where the two
    differ in their operations, n/2 times the peak of two.
    """
    if len(one) != len(two):
        return -(-n * max(two) // 2)
    return max(first + (n - 1) * (second - first) for first, second in zip(one, two))


def available_bytes(device: torch.device) -> int:
    """Memory that this process may still take on the device: of a GPU what is free, of a CPU also the cgroup's rest."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_of_the_machine(), _of_the_cgroup())


def _of_the_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: half of what the machine has
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _of_the_cgroup() -> int:
    """What the limit of the process's container or Slurm job leaves; file caches count as free."""
    rest = [2**63]
    for limit_file, usage_file in FILES:
        for folder in _cgroup_folders(limit_file):
            try:
                limit = int((folder / Path(limit_file).name).read_text())
                usage = int((folder / Path(usage_file).name).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such controller, or "max"
                continue
            cache = int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))
            rest.append(max(0, limit - usage + cache))
    return min(rest)


def _cgroup_folders(limit_file: str) -> list[Path]:
    """The process's cgroup and those above it, as far as they can be seen."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    controller = str(Path(limit_file).parent) if "/" in limit_file else ""
    root = CGROUP / controller
    found = [root]
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            own = root / path.lstrip("/")
            found += [folder for folder in (own, *own.parents) if root in folder.parents]
    return found
