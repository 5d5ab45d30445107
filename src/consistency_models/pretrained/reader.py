"""Reading of the snapshot pickles of EDM, EDM2 and ECT without running their code.

In such a file every module carries the text of its Python source, which the official loader executes. Here
`safe_unpickler.run` interprets the stream, every name of the files maps to a small inert object (`stub_classes`), and
the embedded source is hashed and dropped. The memory of the result is bounded by the size of the file.

(EDM, arXiv 2206.00364; EDM2, arXiv 2312.02696; ECT, arXiv 2406.14548.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from consistency_models.errors import CheckpointError, naming
from consistency_models.pretrained.safe_unpickler import exact, run
from consistency_models.pretrained.stub_classes import Record, StandIns

__all__ = ["Snapshot", "read_bytes", "read_snapshot"]

MAX_BYTES = 16 << 30
MAX_DEPTH, MAX_NAME = 16, 100  # of modules in modules; of one module's name
SCALARS = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Snapshot:
    """The network under the key "ema" of a snapshot pickle.

    Args:
        class_name: the official class of the network with its preconditioning, such as "EDMPrecond".
        network: the official class of the U-Net, such as "SongUNet": the class of the first module.
        kwargs: the arguments of the constructor; official defaults are not among them.
        attributes: numbers among the attributes, such as sigma_data and sigma_min.
        state_dict: parameters and persistent buffers, with official names in official order, bit-exact.
        dataset_kwargs: plain arguments of the training data set; empty if the file has none.
        sources: sha256 of each Python source text in the file, sorted; none of them was executed.
        digest: sha256 of the file.
    """

    class_name: str
    network: str
    kwargs: dict[str, object]
    attributes: dict[str, bool | int | float]
    state_dict: dict[str, Tensor]
    dataset_kwargs: dict[str, object]
    sources: tuple[str, ...]
    digest: str


def read_snapshot(path: Path | str) -> Snapshot:
    """Read the network of an EDM, EDM2 or ECT snapshot pickle without running its code.

    Raises:
        CheckpointError: the file cannot be read, or differs from such a snapshot.
    """
    with naming(path, "a snapshot pickle of EDM, EDM2 or ECT"):
        data = read_bytes(path)
        standins = StandIns(len(data))
        top = exact(run(data, standins.names), dict)
        module = exact(top.get("ema"), Record, 'a network under the key "ema"')
        kwargs = exact(module.state.get("_init_kwargs"), dict, "a network with the arguments of its constructor")
        if exact(module.state.get("_init_args"), tuple) or not all(map(is_plain, kwargs.values())):
            raise CheckpointError("a network constructed with plain keyword arguments only", "others")
        children = exact(module.state.get("_modules"), dict)
        return Snapshot(
            class_name=module.class_name,
            network=next((child.class_name for child in children.values() if type(child) is Record), ""),
            kwargs=kwargs,
            attributes={name: x for name, x in module.state.items() if type(x) in (bool, int, float)},
            state_dict=dict(tensors(module, "", set())),
            dataset_kwargs={k: x for k, x in exact(top.get("dataset_kwargs", {}), dict).items() if is_plain(x)},
            sources=tuple(sorted(hashlib.sha256(source.encode()).hexdigest() for source in standins.sources)),
            digest=hashlib.sha256(data).hexdigest(),
        )


def read_bytes(path: Path | str) -> bytes:
    """Read the bytes of a regular file of bounded size."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError("a regular file", "something else")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"at most {MAX_BYTES} bytes", f"{path.stat().st_size}")
    return path.read_bytes()


def is_plain(value: object) -> bool:
    """Whether the value is None, a number, a string, or a short list of these, as official arguments are."""
    if type(value) in (list, tuple):
        return len(value) <= 64 and all(type(item) in SCALARS for item in value)
    return type(value) in SCALARS


def tensors(module: Record, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters and persistent buffers, in the order of `Module.state_dict`."""
    if id(module) in seen or prefix.count(".") > MAX_DEPTH:  # each module once: a module inside itself has no end
        raise CheckpointError(f"modules that are not shared, nested up to {MAX_DEPTH} deep", prefix)
    seen.add(id(module))
    skipped = exact(module.state.get("_non_persistent_buffers_set", set()), set)
    for group in ("_parameters", "_buffers", "_modules"):
        for name, value in exact(module.state.get(group), dict).items():
            if len(name) > MAX_NAME or "." in name:
                raise CheckpointError(f"a name of at most {MAX_NAME} characters, without a dot", name)
            if group == "_modules" and value is not None:
                yield from tensors(exact(value, Record), f"{prefix}{name}.", seen)
            elif value is not None and name not in skipped:
                yield prefix + name, exact(value, Tensor, f"a tensor under {prefix}{name}")
