"""Pipelines of diffusers in folders: the U-Net with the table of its scheduler, read as numbers.

    model_index.json   unet/config.json   unet/diffusion_pytorch_model.safetensors   scheduler/scheduler_config.json

The parts lie in sub-folders, or, in old folders of DDPM, in the folder itself. Of the classes that a folder names, only
the two U-Nets of `networks.diffusers.CLASSES` are built, and no code of the folder is run. Of a scheduler only the
table and the kind of prediction are read: PNDM, DDIM, Euler and DPM-Solver name the same table. A folder with an
LCMScheduler holds a consistency model. Weights are safetensors; pickles (*.bin) are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistency_models.errors import CheckpointError, import_extra, naming
from consistency_models.files import PIPELINE_INDEX, is_pipeline, sha256_of
from consistency_models.networks.diffusers import UNet
from consistency_models.noise.discrete import Discrete
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.pretrained.build import Pretrained, check_shapes
from consistency_models.sampling.table import DDIM, LCM

__all__ = ["Pipeline", "load_pipeline", "read_pipeline"]

WEIGHTS = "diffusion_pytorch_model"
MAX_JSON = 4 << 20  # bytes; the index of SDXL's shards has 0.2 MB
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in folders of diffusers before 0.13."""
CONVERT = (
    "python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('FOLDER').save_pretrained('NEW', "
    'safe_serialization=True)" writes one, and runs the pickle: only for files that you trust'
)


@dataclass(frozen=True)
class Pipeline:
    """The configuration of a pipeline folder: its U-Net, table and sampler.

    Args:
        unet: the folder with the weights.
        config: content of the U-Net's config.json.
        table: arguments of `Discrete`.
        sampler: the sampler of the folder's scheduler, without `steps`.
        steps: step counts for `sampler`.
        is_latent: the pipeline has a VAE.
    """

    unet: Path
    config: dict[str, Any]
    table: dict[str, Any]
    sampler: partial[Any]
    steps: tuple[int, ...]
    is_latent: bool


def read_pipeline(path: Path | str) -> Pipeline:
    """Read the configurations of a folder; no weights.

    Raises:
        CheckpointError: a part is missing, or the process is none of a table with a denoiser.
    """
    folder = Path(path).expanduser()
    with naming(folder, "a pipeline of diffusers with a U-Net"):
        if not is_pipeline(folder):
            raise CheckpointError(f"a folder of a diffusers pipeline, with {PIPELINE_INDEX}", "no such file")
        if (folder / "transformer").is_dir():
            raise CheckpointError("a pipeline with a U-Net", "a transformer (SD3, Flux and others): not supported")
        if (folder / "vqvae").is_dir():
            raise CheckpointError(
                "a pipeline of pixels, or with a VAE in vae/", "a VQ-VAE in vqvae/ (LDM): not supported"
            )
        unet, config = _part(folder, "unet", "config.json")
        config = {key: _plain(key, config[key]) for key in config if key == "_class_name" or not key.startswith("_")}
        _, scheduler = _part(folder, "scheduler", "scheduler_config.json")
        table = table_of(scheduler)
        sampler, steps = _sampler(scheduler, table)
        sampler.func(steps=steps[0], **sampler.keywords | {"scalings": Discrete(**table)})  # raises for other values
        return Pipeline(unet, config, table, sampler, steps, (folder / "vae").is_dir())


def load_pipeline(path: Path | str) -> Pretrained:
    """Load the U-Net of a folder with the scalings of its scheduler, in float32.

    Raises:
        CheckpointError: the folder is no such pipeline, or its weights are pickled, damaged or of another network.
        ModuleNotFoundError: the extra `latent` is not installed.
    """
    pipeline = read_pipeline(path)
    import_extra("diffusers", "latent")
    import_extra("safetensors", "latent")
    with naming(Path(path).expanduser(), "a U-Net with its weights"):
        files = weight_files(pipeline.unet)
        network = partial(UNet, config=pipeline.config)
        filled = _filled(network, pipeline.config, files)
        table, digests = Discrete(**pipeline.table), [sha256_of(file) for file in files]
        return Pretrained(
            model=Preconditioned(filled, table).eval(),
            kind="diffusers",
            sigma_data=1.0,
            sigma_min=table.sigma_min,
            sigma_max=table.sigma_max,
            image_size=filled.image_size,
            channels=filled.channels,
            num_classes=0,
            digest=digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
            steps=pipeline.steps,
            recipe={
                "network": network,
                "preconditioning": partial(Discrete, **pipeline.table),
                "sampler": pipeline.sampler,
            },
            clamp=not pipeline.is_latent,
        )


def table_of(scheduler: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Discrete` in a scheduler's configuration.

    Raises:
        CheckpointError: the process has no table of β, or one that ends at no signal at all.
    """
    name = str(scheduler.get("_class_name"))
    prediction = scheduler.get("prediction_type", "epsilon")
    if name.startswith("Flow") or prediction == "flow_prediction" or scheduler.get("use_flow_sigmas"):
        reason = "a scheduler of flow matching (SD3, Flux), which is another process than that of a table"
        raise CheckpointError("a scheduler with a table of β", f"{name}: {reason}")
    if not {"beta_schedule", "trained_betas"} & scheduler.keys():
        raise CheckpointError("a scheduler with a table of β (beta_schedule, or trained_betas)", f"{name} without one")
    if scheduler.get("rescale_betas_zero_snr"):
        reason = "rescale_betas_zero_snr: its last level has no signal, so that the noise level is infinite"
        raise CheckpointError("a table whose last level is finite", reason)
    table = {
        "beta_schedule": scheduler.get("trained_betas") or scheduler.get("beta_schedule"),
        "beta_start": scheduler.get("beta_start", 0.0001),
        "beta_end": scheduler.get("beta_end", 0.02),
        "num_train_timesteps": scheduler.get("num_train_timesteps", scheduler.get("timesteps", 1000)),
        "prediction_type": prediction,
        "boundary": None,
    }
    if name == "LCMScheduler":
        table["boundary"] = scheduler.get("timestep_scaling", 10.0)
    Discrete(**table)  # raises for values that are none of a table
    return table


def _sampler(scheduler: dict[str, Any], table: dict[str, Any]) -> tuple[partial[Any], tuple[int, ...]]:
    """The sampler: LCM's of an LCMScheduler in 1 to 4 steps, DDIM's of any other in 50."""
    scalings = partial(Discrete, **table)
    if table["boundary"] is not None:
        return partial(LCM, scalings=scalings, original_steps=scheduler.get("original_inference_steps", 50)), (4, 1, 2)
    leading = scheduler.get("timestep_spacing", "leading") == "leading"
    options = {"spacing": "leading", "offset": scheduler.get("steps_offset", 0)} if leading else {"spacing": "trailing"}
    final = "zero" if scheduler.get("set_alpha_to_one", True) else "first"
    return partial(DDIM, scalings=scalings, **options, final=final), (50,)


def _part(folder: Path, name: str, file: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a part and its configuration: a sub-folder, or the folder itself."""
    for place in (folder / name, folder):
        if (place / file).is_file():
            return place, _json(place / file)
    raise CheckpointError(f"{name}/{file}, or {file} in an old folder", "neither")


def _json(path: Path) -> dict[str, Any]:
    with naming(path, "a JSON file"):
        with path.open("rb") as file:
            content = file.read(MAX_JSON + 1)
        if len(content) > MAX_JSON:
            raise CheckpointError(f"a file of at most {MAX_JSON} bytes", "a larger file")
        found = json.loads(content)
        if not isinstance(found, dict):
            raise CheckpointError("a JSON object", found)
        return found


def _plain(key: str, value: Any) -> Any:
    """The value of a configuration. Texts with ${ and mappings could be resolved to something else later."""
    if isinstance(value, list):
        return [_plain(key, item) for item in value]
    if type(value) not in (int, float, str, bool, type(None)) or "${" in str(value):
        raise CheckpointError("numbers, names and lists in config.json", f"{key}: {value!r:.80}")
    return value


def weight_files(unet: Path) -> list[Path]:
    """The safetensors files of a U-Net: one, shards, or a half-precision variant.

    Raises:
        CheckpointError: there are none; or an index names files elsewhere.
    """
    for variant in ("", ".fp16"):
        if (file := unet / f"{WEIGHTS}{variant}.safetensors").is_file():
            return [file]
        if (index := unet / f"{WEIGHTS}.safetensors.index{variant}.json").is_file():
            names = sorted({str(name) for name in _json(index)["weight_map"].values()})
            if not names or not all(Path(name).name == name and name.endswith(".safetensors") for name in names):
                raise CheckpointError("an index of safetensors files in this folder", ", ".join(names))
            return [unet / name for name in names]
    if any(unet.glob("*.bin")):
        raise CheckpointError(f"{WEIGHTS}.safetensors", f"a pickle (*.bin), which is not read. {CONVERT}")
    raise CheckpointError(f"{unet.name}/{WEIGHTS}.safetensors", "no such file")


def _filled(network: partial[UNet], config: dict[str, Any], files: list[Path]) -> UNet:
    """The network with the weights. Names and shapes are compared on the meta device, before weights are read."""
    safetensors = import_extra("safetensors", "latent")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safetensors.safe_open(file, framework="pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    check_blocks(config, len(shapes))
    with torch.device("meta"):
        built = network()
    expected = built.unet.state_dict()
    names = {name: name if name in expected else _renamed(name) for name in shapes}
    check_shapes(expected, {names[name]: shape for name, shape in shapes.items()})
    weights = {names[name]: value for name, value in _tensors(files)}
    built.unet.load_state_dict(weights, assign=True)  # no random weights are drawn
    return built.requires_grad_(False)


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    safetensors = import_extra("safetensors", "latent")
    for file in files:
        with safetensors.safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                yield name, opened.get_tensor(name).float()


def _renamed(name: str) -> str:
    *parents, layer, kind = name.split(".")
    return ".".join([*parents, RENAMED.get(layer, layer), kind])


def check_blocks(config: dict[str, Any], tensors: int) -> None:
    """Refuse a configuration of more blocks than there are tensors: its construction could take any time.

    Raises:
        CheckpointError: the configuration does so, or has no plain numbers.
    """

    def largest(value: Any) -> int:
        if isinstance(value, list):
            return max(map(largest, value), default=0)
        if value is not None and type(value) is not int:
            raise CheckpointError("numbers of layers in config.json", value)
        return value or 1

    levels = config.get("block_out_channels") or [0] * 4
    keys = ("layers_per_block", "transformer_layers_per_block")
    blocks = len(levels)
    for key in keys:
        blocks *= largest(config.get(key))
    if blocks > max(tensors, 1):
        raise CheckpointError(f"a network of {tensors} tensors", f"the configuration of one of {blocks} blocks")
