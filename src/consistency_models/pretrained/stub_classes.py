"""Stubs for the names that a snapshot pickle of EDM, EDM2 or ECT uses."""

from __future__ import annotations

import io
import math
import pickletools

import numpy as np
import torch
from torch import Tensor
from torch.storage import TypedStorage

from consistency_models.errors import CheckpointError
from consistency_models.pretrained.safe_unpickler import Inert, exact

__all__ = ["Record", "StandIns"]

META = {"type": str, "version": int, "module_src": str, "class_name": str, "state": dict}
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
STORAGES = {f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")}
STORAGE_OPCODES = {"PROTO", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "GLOBAL"}
STORAGE_OPCODES |= {"BINUNICODE", "BINPUT", "BINGET", "MARK", "TUPLE", "EMPTY_DICT", "SETITEM", "SETITEMS"}
STORAGE_OPCODES |= {"EMPTY_LIST", "APPEND", "BINPERSID"}


class Record(Inert):
    """An object of a class that is not imported: the name of the class, and the object's `__dict__`."""

    __slots__ = ("class_name", "state")

    def __init__(self, class_name: str, state: dict[str, object] | None) -> None:
        self.class_name, self.state = class_name, state

    def __setstate__(self, state: object) -> None:
        if self.state is not None:
            super().__setstate__(state)
        self.state = exact(state, dict)


class BoundMethod(Inert):
    """`getattr(record, name)`; ECT's loss refers to one of its own methods."""

    __slots__ = ("name", "record")

    def __init__(self, record: Record, name: str) -> None:
        self.record, self.name = exact(record, Record), exact(name, str)


class DType(Inert):
    """`numpy.dtype` of a scalar, little-endian."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, align: bool, copy: bool) -> None:
        if exact(name, str) not in ("f4", "f8", "i4", "i8"):
            raise CheckpointError("a numpy scalar of type f4, f8, i4 or i8", name)
        self.dtype = np.dtype("<" + name)

    def __setstate__(self, state: object) -> None:
        version, order, *_ = exact(state, tuple)
        if (exact(version, int), exact(order, str)) != (3, "<"):
            raise CheckpointError("a little-endian numpy type, version 3", f"{order}, {version}")


class Storage(Inert):
    """The numbers of a nested torch file: a tensor of one dimension without further references."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values


class StandIns:
    """The table of names, with a budget of memory for a file of this size.

    Args:
        size: bytes in the file. All storages together, and all tensors together, hold at most as many bytes, however
            often the stream refers to the same bytes and whatever strides it declares.
    """

    def __init__(self, size: int) -> None:
        self.size = self.storage_bytes = self.tensor_bytes = size
        self.sources: set[str] = set()
        self.names = {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): self.record,
            ("torch._utils", "_rebuild_parameter"): self.parameter,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch.storage", "_load_from_bytes"): self.storage,
            ("torch.nn.modules.container", "ModuleDict"): module_dict,
            ("collections", "OrderedDict"): empty_dict,
            ("dnnlib.util", "EasyDict"): empty_dict,
            ("numpy.core.multiarray", "scalar"): number,
            ("numpy._core.multiarray", "scalar"): number,
            ("numpy", "dtype"): DType,
            ("builtins", "getattr"): BoundMethod,
        }

    def record(self, meta: dict[str, object]) -> Record:
        """Stub for `torch_utils.persistence._reconstruct_persistent_obj`, which executes `module_src`."""
        if {name: type(value) for name, value in exact(meta, dict).items()} != META:
            raise CheckpointError(f"an object with {', '.join(META)} and nothing else", ", ".join(meta))
        if (meta["type"], meta["version"]) != ("class", 6):
            raise CheckpointError("an object of type class, version 6", f"{meta['type']}, {meta['version']}")
        self.sources.add(meta["module_src"])
        return Record(meta["class_name"], meta["state"])  # not a copy: the state of ECT's loss is filled in later

    def parameter(self, value: Tensor, requires_grad: bool, hooks: dict[str, object]) -> Tensor:
        """Stub for `torch._utils._rebuild_parameter`: returns the tensor."""
        return exact(value, Tensor)

    def tensor(self, storage, offset, size, stride, requires_grad, hooks) -> Tensor:
        """Stub for `torch._utils._rebuild_tensor_v2`: a copy of a part of the storage, which `set_` could enlarge."""
        values = exact(storage, Storage).values
        shape = (offset, *exact(size, tuple), *exact(stride, tuple))
        if len(shape) > 17 or not all(type(n) is int and 0 <= n <= self.size for n in shape):
            raise CheckpointError("up to 8 sizes and strides of 0 to the file's size", str(shape[:17]))
        count = math.prod(size)
        end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
        if end > len(values):
            raise CheckpointError(f"a tensor within its storage of {len(values)} values", f"one that ends at {end}")
        self.tensor_bytes -= count * values.itemsize
        if self.tensor_bytes < 0:
            raise CheckpointError("tensors that together are no larger than the file", f"one more of {count} values")
        return values.as_strided(size, stride, offset).clone()

    def storage(self, data: bytes) -> Storage:
        """Stub for `torch.storage._load_from_bytes`: reads a storage in torch's legacy format with `weights_only=True`.

        The bytes are checked first. They may contain only the opcodes that write one storage, which call nothing, and
        no number larger than the file, so that torch allocates no more than the file holds.
        """
        self.storage_bytes -= len(exact(data, bytes))
        if self.storage_bytes < 0:
            raise CheckpointError("storages that together are no larger than the file", "more")
        if not data.startswith(LEGACY_MAGIC):
            raise CheckpointError("a storage in torch's legacy format", f"bytes that start {data[:16]!r}")
        stream = io.BytesIO(data)
        stream.seek(len(LEGACY_MAGIC))
        for _ in range(4):  # protocol version, system, storage, key of the storage
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                known = opcode.name in STORAGE_OPCODES and count < 64 and argument != "module"
                named = opcode.name != "GLOBAL" or argument in STORAGES
                small = type(argument) is not int or 0 <= argument <= max(len(data), 1001)  # 1001: protocol version
                if not (known and named and small):
                    raise CheckpointError("a storage of floating-point numbers", f"{opcode.name} {argument!r:.80}")
        storage = exact(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), TypedStorage)
        values = torch.empty(0, dtype=storage.dtype).set_(storage)
        if values.nbytes > len(data):
            raise CheckpointError(f"a storage of at most {len(data)} bytes", f"one of {values.nbytes}")
        return Storage(values)


def module_dict() -> Record:
    """Stub for `torch.nn.ModuleDict`; the state follows in the stream."""
    return Record("ModuleDict", None)


def empty_dict() -> dict[str, object]:
    """Stub for `collections.OrderedDict()` and `EasyDict()`; the items follow in the stream."""
    return {}


def number(dtype: DType, data: bytes) -> float | int:
    """Stub for `numpy.core.multiarray.scalar`."""
    (value,) = np.frombuffer(exact(data, bytes), exact(dtype, DType).dtype)
    return value.item()
