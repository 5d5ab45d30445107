"""Loading of generators from checkpoints, run folders, exports and official checkpoints.

A file names the classes of its model. Only marked classes of this package, and classes of packages that the user trusts
by name, are built: see `consistency_models.trust`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from consistency_models.data_spec import DataSpec
from consistency_models.errors import CheckpointError, import_extra, naming
from consistency_models.files import is_checkpoint, is_pipeline, sha256_of
from consistency_models.networks.layout import HALF, prefers_channels_last, set_channels_last
from consistency_models.networks.lora import share_base, shared_names
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.pretrained.build import check_shapes
from consistency_models.pretrained.convert import checkpoint_of
from consistency_models.sampling.generator import Generator
from consistency_models.storage.checkpoints import digest_of, read
from consistency_models.storage.moved_names import current_config, current_target
from consistency_models.trust import advice, fixed_arguments

__all__ = ["build_model", "checkpoint_file", "instantiate", "load", "read_safetensors"]

HEADER, HEADER_SCHEMA = "consistency_models", 1  # key and version of the description in exports
PARTS = ("network", "preconditioning", "sampler", "data", "features")  # of a configuration, built from a file
DATA_MODULE = "consistency_models.data.DataModule"  # has the mark; to look would import Lightning, which takes seconds
BASE = ".base_layer."  # in the names of the weights below adapters
MAX_SIZE, MAX_STEPS = 4096, 10_000
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace}


def instantiate(node: Any, **arguments: Any) -> Any:
    """Build the object that a part of a configuration describes, with plain lists and dicts, which can be saved."""
    import hydra.utils

    return hydra.utils.instantiate(node, _convert_="all", **arguments)


def build_model(config: dict[str, Any]) -> Preconditioned:
    """Build the preconditioned network of a configuration, with fresh weights.

    A network with adapters is built on the meta device: its weights are those of another model, see `share_base`.
    """
    with torch.device("meta") if config["network"].get("lora") else nullcontext():
        network = instantiate(config["network"])
    return Preconditioned(network, instantiate(config["preconditioning"]))


def load(
    path: str | Path,
    weights: str | float | None = None,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
    precision: str = "32-true",
) -> Generator:
    """Load a generator from a checkpoint, a run folder, an export or an official checkpoint.

    Args:
        path: a checkpoint file, a run folder (its `checkpoints/last.ckpt`), a `*.safetensors` file or Hub folder of
            `consistency_models.export`, or an official `*.pkl`, `*.pt` or pipeline folder of others (see `pretrained`).
        weights: which weights: "model", or the name of an average such as "0.999" (a decay may be given as the number);
            by default the first average.
        device: device of the model. Convolutions have the memory layout of the training.
        trust: packages whose classes the file may name, beside those in CONSISTENCY_MODELS_TRUST (a,b,…): see `trust`.
        precision: 32-true, or bf16-mixed or 16-mixed for a network under autocast. Weights, levels and the elementwise
            operations of the sampler are float32.

    Raises:
        CheckpointError: the file is damaged, its weights are not those of the network that it describes, or it asks for
            something other than a network, a sampler or the like of this package or of one that is trusted.
        ValueError: no such weights, or no such precision.
        ModuleNotFoundError: the file is an export, and the extra `export` is not installed.
    """
    if precision != "32-true" and precision not in HALF:
        raise ValueError(f"precision={precision!r}: use 32-true, {' or '.join(HALF)}")
    path = checkpoint_file(path)
    content = _content(path)
    chosen = next(iter(content["ema"]), "model") if weights is None else str(weights)
    if chosen != "model" and chosen not in content["ema"]:
        raise ValueError(f"weights={chosen!r}: {path} has {['model', *content['ema']]}")
    kind = torch.device(device).type
    with naming(path, "a model with its weights, and how it is sampled from"):
        config = current_config(checked_config(content["config"], trust))
        average = {} if chosen == "model" else content["ema"][chosen]
        model = filled_model(config, {**content["model"], **average}, _base_of(content, config))
        own = config.get("channels_last")  # of the training; an official file leaves it to the device
        automatic = prefers_channels_last(model.network, kind)
        set_channels_last(model.network, own if isinstance(own, bool) else automatic)
        generator = _generator_of(config, model.eval().requires_grad_(False))
        generator.pipeline = _pipeline_of(path, content, config)
    model.to(device)  # an error is not one of the file
    model.autocast = HALF.get(precision)
    generator.weights, generator.config = chosen, config
    generator.origin = content["origin"]
    return generator


def _generator_of(config: dict[str, Any], model: nn.Module) -> Generator:
    """Build the generator of a model.

    Raises:
        CheckpointError: the images are not those of the network, or the sampler does not take the numbers of steps.
    """
    data, steps = DataSpec.of(config["data"]), tuple(config["evaluation"]["steps"])
    for key in ("channels", "image_size", "num_classes"):
        stated = getattr(data, key)
        found = getattr(model.network, key, stated)
        if key == "image_size" and getattr(model.network, "takes_text", False):
            found = stated  # a U-Net of latents takes other sizes than that of its pipeline
        if type(stated) is not int or stated != found or not 0 <= found <= MAX_SIZE:
            raise CheckpointError(f"data with the network's {key}, up to {MAX_SIZE}", f"{stated} and {found}")
    if not steps or any(type(n) is not int or not 1 <= n <= MAX_STEPS for n in steps):
        raise CheckpointError(f"evaluation.steps with numbers from 1 to {MAX_STEPS}", f"{steps}")
    make_sampler = instantiate(config["sampler"])
    for n in steps:
        sampler = make_sampler(steps=n)
        if not callable(sampler) or not hasattr(sampler, "sigmas"):
            raise CheckpointError("a sampler", sampler)
    lowest = float((config.get("model") or {}).get("transition") or 0)
    generator = Generator(model, data.shape, make_sampler, data.num_classes, data.clamp, data.class_names, lowest)
    generator.steps = steps
    return generator


def _pipeline_of(path: Path, content: dict[str, Any], config: dict[str, Any]) -> str | None:
    """The folder with the text encoders and the VAE of a model: this one, the teacher's, or another of the run."""
    groups = (content.get("teacher"), config.get("teacher"), config.get("init"), config["data"].get("source"))
    places = [group or {} for group in groups]
    paths = [str(path), *(place.get("path") or place.get("decoder") for place in places)]
    given = [each for each in paths if each]
    return next((each for each in given if is_pipeline(each)), (given[1:] or [None])[0])


def _base_of(content: dict[str, Any], config: dict[str, Any]) -> nn.Module | None:
    """Load the model whose weights the adapters of a checkpoint need; None if the file has all weights.

    Raises:
        CheckpointError: the model is gone, or its weights have changed.
    """
    if not config["network"].get("lora") or any(BASE in name for name in content["model"]):
        return None
    base, expected = content.get("teacher") or {}, "the base of the adapters, which the checkpoint names"
    path = base.get("path")
    if not isinstance(path, str) or not Path(path).expanduser().exists():
        raise CheckpointError(expected, f"no file or folder {path}: put it back, or export adapters with --merge")
    generator = load(path)
    if generator.origin["digest"] != base.get("digest"):
        changed = f"{path} with SHA-256 {generator.origin['digest'][:12]}, not {str(base.get('digest'))[:12]}"
        raise CheckpointError(expected, changed)
    return generator.model


def filled_model(config: dict[str, Any], weights: dict[str, Any], base: nn.Module | None = None) -> Preconditioned:
    """Build the preconditioned network of a configuration and load these weights, which must be exactly its own.

    Args:
        config: the configuration.
        weights: all weights, or those of the adapters.
        base: the model whose weights are shared with a network with adapters.

    Raises:
        CheckpointError: a name or a shape differs, or the network is larger than its weights.
    """
    with _not_larger_than(weights if base is None else {**base.state_dict(), **weights}):
        model = build_model(config)
    shared = set() if base is None else shared_names(model)
    if base is not None:
        share_base(model.network, base.network)
    own = {name: value for name, value in model.state_dict().items() if name not in shared}
    check_shapes(own, {name: tuple(value.shape) for name, value in weights.items()})
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        if getattr(model.preconditioning, name)(torch.ones(2)).shape != (2,):  # once: a number may be of a wrong type
            raise CheckpointError(f"a preconditioning with {name} of one number for each level", model.preconditioning)
    for module in model.modules():
        rate = module.p if isinstance(module, nn.Dropout) else vars(module).get("dropout", 0.0)
        if not 0 <= rate < 1:
            raise CheckpointError("dropout in [0, 1)", f"{rate}")
    # Weights on the meta device have no memory of their own.
    model.load_state_dict(weights, strict=not shared, assign=any(p.is_meta for p in model.parameters()))
    return model


@contextmanager
def _not_larger_than(weights: dict[str, Any]) -> Iterator[None]:
    """Stop a constructor that creates many more numbers, modules, parameters and buffers than there are weights."""
    made = itertools.count()

    def count(*_: Any) -> None:
        if next(made) > 1000 + 20 * len(weights):
            raise CheckpointError(f"a network of {len(weights)} tensors", "the arguments of a larger one")

    hooks = [
        register(count)
        for register in (
            register_module_module_registration_hook,
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
        )
    ]
    try:
        with _Bounded(10**7 + 4 * sum(value.numel() for value in weights.values())):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Bounded(TorchFunctionMode):
    """Refuses new tensors of more than `numbers` values in all, before memory is allocated.

    The sizes are found on the meta device, without functions that are decomposed there, such as `arange` with a dtype:
    their import takes a second.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = self.left = numbers

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in FACTORIES:
            measure = torch.empty if function in (torch.rand, torch.randn) else function
            shape = {key: value for key, value in kwargs.items() if key != "dtype"} | {"device": "meta"}
            self.left -= measure(*args, **shape).numel()
            if self.left < 0:
                raise CheckpointError(f"a network of up to {self.numbers:,} values", "the arguments of a larger one")
        return function(*args, **kwargs)


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint file of a run folder, a folder for the Hub or a file name; the folder of a diffusers pipeline."""
    path = Path(path).expanduser()
    exported = path / "model.safetensors"
    if exported.is_file():
        return exported
    if is_pipeline(path):
        return path
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def _content(path: Path) -> dict[str, Any]:
    """The content of a file that `load` takes: configuration, weights, and their origin."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.is_dir() or (path.suffix in (".pkl", ".pt") and not is_checkpoint(path)):
        return checkpoint_of(path)
    content = read(path)
    if missing := {"config", "model", "ema"} - content.keys():
        raise CheckpointError("a checkpoint of a run", f"a file without {', '.join(sorted(missing))}", path)
    if not isinstance(origin := content.get("origin", {}), dict):
        raise CheckpointError("a mapping origin", origin, path)
    return content | {"origin": origin | {"path": str(path), "digest": digest_of(path)}}


def read_safetensors(path: Path | str) -> dict[str, Any]:
    """Read a safetensors export as `checkpoints.read` reads a checkpoint; the digest is that of the file.

    Everything but the weights is JSON in the header of the file, under the key `consistency_models`:

        {"schema": 1, "config": {}, "origin": {"digest", "weights", "kind" of an official file}}

    Raises:
        CheckpointError: the file is no export, or lacks the configuration that `to_safetensors` writes.
        ModuleNotFoundError: the extra `export` is not installed.
    """
    safetensors = import_extra("safetensors")
    with naming(path, "a safetensors file that consistency_models.export wrote"):
        digest = sha256_of(path)
        with safetensors.safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[HEADER])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        if said["schema"] != HEADER_SCHEMA:
            raise CheckpointError(f"schema {HEADER_SCHEMA}", f"{said['schema']}: written by another version")
        origin = {**said["origin"], "path": str(path), "digest": digest}
        return {"config": said["config"], "model": weights, "ema": {}, "origin": origin}


def checked_config(config: dict[str, Any], trust: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of a file, after checking that its objects may be built: see `trust.fixed_arguments`.

    The result is a copy of plain dicts and lists, in which arguments that a file cannot choose have their fixed values.

    Raises:
        CheckpointError: a part in `PARTS` names another object, or holds an interpolation.
    """
    copy = _plain(config)
    for part in PARTS:
        _check_targets(part, copy.get(part), trust)
    return copy


def _plain(value: Any) -> Any:
    """Copy a configuration with lists in place of tuples.

    Raises:
        CheckpointError: a value of a type that no configuration holds.
    """
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if type(value) not in (int, float, str, bool, type(None)):
        raise CheckpointError("a configuration of text, numbers, lists and dicts", value)
    return value


def _check_targets(part: str, node: Any, trust: Sequence[str]) -> None:
    """Check all objects in a part of a configuration, and set the arguments that a file cannot choose."""
    if isinstance(node, str) and "${" in node:  # it could be resolved to a target that is not written here
        raise CheckpointError("plain values, without ${", f"{part} with one")
    if isinstance(node, dict):
        if "_target_" in node:
            target = current_target(str(node["_target_"]))
            fixed = {} if target == DATA_MODULE else fixed_arguments(target, trust)
            if fixed is None:
                raise CheckpointError(advice(target), f"{part} asks for {target}")
            node |= fixed
        _check_targets(part, [*node, *node.values()], trust)
    elif isinstance(node, list):
        for item in node:
            _check_targets(part, item, trust)
