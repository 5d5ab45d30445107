"""Generators from files: checkpoints and run folders of our own, exports, and official checkpoints of others.

A file says which classes its model is made of; only networks, samplers, data and the like of this package are taken, or
of packages that the user trusts by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from consistency_models.errors import CheckpointError, import_extra, naming
from consistency_models.noise.preconditioning import Preconditioned
from consistency_models.pretrained.convert import checkpoint_of
from consistency_models.sampling.generator import Generator
from consistency_models.storage.checkpoints import digest_of, is_marked, read
from consistency_models.storage.moved_names import current_config

__all__ = ["build_model", "checkpoint_file", "instantiate", "load", "read_safetensors"]

HEADER, HEADER_SCHEMA = "consistency_models", 1  # of exports: under which key they say what they are


def instantiate(node: Any, **arguments: Any) -> Any:
    """The object that a configuration node describes; lists and dicts in it are plain, so that they can be saved."""
    import hydra.utils

    return hydra.utils.instantiate(node, _convert_="all", **arguments)


def build_model(config: dict[str, Any]) -> nn.Module:
    """The preconditioned network that a configuration describes, with fresh weights."""
    return Preconditioned(instantiate(config["network"]), instantiate(config["preconditioning"]))


def load(path: str | Path, weights: str | float | None = None, device: torch.device | str = "cpu") -> Generator:
    """A generator from a checkpoint, a run folder, an export or an official checkpoint.

    Args:
        path: a checkpoint file, a run folder (its `checkpoints/last.ckpt`), a `*.safetensors` file or Hub folder of
            `consistency_models.export`, or an official `*.pkl` or `*.pt` of others (see `pretrained`).
        weights: which weights: "model", or the name of an average such as "0.999" (a decay may be given as the number);
            by default the first average.
        device: where it shall run.

    Raises:
        CheckpointError: the file is damaged, or asks for something other than a network, a sampler or the like of this
            package or of one that is trusted.
        ValueError: no such weights.
        ModuleNotFoundError: an export, and the extra `export` is not installed.
    """
    path = checkpoint_file(path)
    content = _content(path)
    config = current_config(content["config"])
    _check_targets(config, path)
    model = build_model(config)
    chosen = next(iter(content["ema"]), "model") if weights is None else str(weights)
    if chosen != "model" and chosen not in content["ema"]:
        raise ValueError(f"weights={chosen!r}: {path} has {['model', *content['ema']]}")
    model.load_state_dict(content["model"])
    if chosen != "model":
        model.load_state_dict(content["ema"][chosen], strict=False)  # buffers are not averaged
    data = config["data"]
    generator = Generator(
        model.to(device).eval().requires_grad_(False),
        (data["channels"], data["image_size"], data["image_size"]),
        instantiate(config["sampler"]),
        data["network_classes"],
        data["clamp"],
    )
    generator.weights, generator.config = chosen, config
    generator.steps = tuple(config["evaluation"]["steps"])
    generator.origin = content["origin"]
    return generator


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that a run folder, a folder for the Hub or a file name stands for."""
    path = Path(path).expanduser()
    exported = path / "model.safetensors"
    if exported.is_file():
        return exported
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def _content(path: Path) -> dict[str, Any]:
    """What is in a file of any form that `load` takes: config, weights, and where they are from."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".pkl", ".pt") and not is_marked(path):
        return checkpoint_of(path)
    content = read(path)
    return content | {"origin": content.get("origin", {}) | {"path": str(path), "digest": digest_of(path)}}


def read_safetensors(path: Path | str) -> dict[str, Any]:
    """What `checkpoints.read` would give of the same model; its digest is the file's.

    All but the weights is JSON in the file's header, under the key `consistency_models`:

        {"schema": 1, "config": {}, "origin": {"digest", "weights", "kind" of an official file}}

    Raises:
        CheckpointError: not such a file, or one without the configuration that `to_safetensors` writes.
        ModuleNotFoundError: the extra `export` is not installed.
    """
    safetensors = import_extra("safetensors")
    with naming(path, "a safetensors file that consistency_models.export wrote"):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with safetensors.safe_open(path, framework="pt") as file:
            said = json.loads(file.metadata()[HEADER])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        if said["schema"] != HEADER_SCHEMA:
            raise CheckpointError(f"schema {HEADER_SCHEMA}", f"{said['schema']}: written by another version")
        origin = {**said["origin"], "path": str(path), "digest": digest}
        return {"config": said["config"], "model": weights, "ema": {}, "origin": origin}


MODEL = ("networks", "noise", "pretrained.edm", "sampling")
TRUSTED = dict.fromkeys(("network", "preconditioning", "sampler"), MODEL)
TRUSTED |= {"data": ("data",), "features": ("evaluation",)}
"""Parts of a configuration that are built from a file, and the modules of this package that they may name: there are
others in it that write files."""


def _check_targets(config: dict[str, Any], path: Path) -> None:
    """Refuse a configuration that would run anything but what it is there to describe."""
    for part, modules in TRUSTED.items():
        for target in _targets(config.get(part)):
            if not _is_trusted(target, modules):
                expected = f"classes of this package, or of one in CONSISTENCY_MODELS_TRUST={target.split('.')[0]}"
                raise CheckpointError(expected, f"{part} asks for {target}", path)
        if "${" in str(config.get(part)):  # it would be resolved, and could become a target that is not written here
            raise CheckpointError("plain values, without ${", f"{part} with one", path)


def _is_trusted(target: str, modules: tuple[str, ...]) -> bool:
    """Whether it is from these modules, or from a package that the user names in CONSISTENCY_MODELS_TRUST (a,b,…)."""
    from hydra.utils import get_object

    named = {name.strip() for name in os.environ.get("CONSISTENCY_MODELS_TRUST", "").split(",")}
    packages = [*(f"consistency_models.{module}" for module in modules), *named - {"", "consistency_models"}]
    prefixes = tuple(f"{package}." for package in packages)
    # consistency_models.sampling.samplers.math.pow begins like ours and is not: ask the object where it is from.
    return target.startswith(prefixes) and f"{get_object(target).__module__}.".startswith(prefixes)


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [t for value in node.values() for t in _targets(value)]
    return [t for value in node for t in _targets(value)] if isinstance(node, list) else []
