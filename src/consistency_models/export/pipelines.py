"""Export of latent consistency models to pipelines of diffusers: a whole folder, or the adapters alone.

    pipeline = DiffusionPipeline.from_pretrained(FOLDER)                  # a student whose weights are all trained
    pipeline.load_lora_weights(FOLDER)                                    # adapters, into the pipeline of the teacher

LCMScheduler has one formula for the boundary, that of `Discrete` with a `boundary`; other students are refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consistency_models.errors import import_extra
from consistency_models.files import is_pipeline, write_atomically
from consistency_models.networks.diffusers import UNet
from consistency_models.networks.lora import ADAPTER
from consistency_models.noise.discrete import Discrete
from consistency_models.sampling.generator import Generator

__all__ = ["merged_weights", "to_pipeline"]

NOT_COPIED = ("*.bin", "*.ckpt", "*.pt", "*.pkl", "*.msgpack", "*.h5", "*.onnx*", ".*")
STEMS = ("diffusion_pytorch_model", "model")
"""Names of the weights of diffusers and of transformers."""
ADAPTERS = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora"),
    *("rank_pattern", "alpha_pattern"),
)
"""What diffusers reads of the description of adapters."""

CARD = """# {title}

A student of latent consistency distillation, exported by consistency-models. {what}

```python
{code}
```

{guidance}
"""
WHOLE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({folder})
image = pipeline("a photo", num_inference_steps=4, guidance_scale={scale}).images[0]"""
LORA = """from diffusers import DiffusionPipeline, LCMScheduler

pipeline = DiffusionPipeline.from_pretrained({base})  # the teacher, or a model that was fine-tuned from it
pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, {options})
pipeline.load_lora_weights({folder})
image = pipeline("a photo", num_inference_steps=4, guidance_scale=1.0).images[0]"""
PIXELS = """import torch
from diffusers import LCMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained({folder}, subfolder="unet")
scheduler = LCMScheduler.from_pretrained({folder}, subfolder="scheduler")
scheduler.set_timesteps(4)
x = torch.randn(16, {shape})
for t in scheduler.timesteps:
    with torch.no_grad():
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
images = x.clamp(-1, 1)  # diffusers has no pipeline for this student"""
EMBEDDED = "The student takes guidance_scale as an input. Negative prompts have no effect."
FREE = "The student has learned the guidance of its teacher: use guidance_scale 1.0, at most 2."


def to_pipeline(
    generator: Generator, folder: Path | str, pipeline: Path | str | None = None, merge: bool = False
) -> None:
    """Write the folder; it is created if it does not exist.

    Args:
        generator: a student with `UNet` and `Discrete` scalings with a boundary.
        folder: folder to write.
        pipeline: folder of the pipeline whose other parts (VAE, text encoders) are copied; by default the teacher's.
        merge: add adapters to the weights of the base, and write a whole folder.

    Raises:
        ValueError: the student has other scalings, there are no adapters to merge, adapters of pixels are not merged,
            there is no such pipeline, or one of its parts is missing. Nothing is written then.
        ModuleNotFoundError: the extra `latent` is not installed.
        OSError: it cannot be written.
    """
    network, scalings, folder = generator.model.network, generator.model.preconditioning, Path(folder)
    if type(scalings) is not Discrete or scalings.boundary is None:
        raise ValueError(
            "diffusers' LCMScheduler takes students with the preconditioning Discrete with a boundary; got "
            f"{type(scalings).__name__}{' without one' if type(scalings) is Discrete else ''}: train with "
            "preconditioning=lcm to export"
        )
    adapters = network.lora is not None
    if merge and not adapters:
        raise ValueError("--merge: this student has no adapters")
    if adapters and not merge and not network.takes_text:
        raise ValueError("diffusers' pipelines of pixels load no adapters: add --merge, which writes a whole U-Net")
    base = Path(pipeline or generator.pipeline or "").expanduser()
    if network.takes_text and not is_pipeline(base):
        raise ValueError(f"--pipeline: {base} is no folder with model_index.json; give the folder of the teacher")
    if adapters and not merge:
        _write_adapters(generator, network, folder, base)
        return
    index = _index(base) if network.takes_text else {}
    diffusers = import_extra("diffusers", "latent")
    unet = type(network.unet).from_config(network.unet.config, sample_size=generator.shape[-1])
    unet.load_state_dict(merged_weights(network.unet))
    unet.save_pretrained(folder / "unet")
    diffusers.LCMScheduler(**_scheduler(generator)).save_pretrained(folder / "scheduler")
    if network.takes_text:
        _copy_rest(base, index, folder)
        takes_w = network.unet.config.get("time_cond_proj_dim") is not None
        code = WHOLE.format(folder=json.dumps(folder.name), scale=8.0 if takes_w else 1.0)
        _write_card(folder, "The folder is a pipeline of diffusers.", code, EMBEDDED if takes_w else FREE)
    else:
        code = PIXELS.format(folder=json.dumps(folder.name), shape=", ".join(map(str, generator.shape)))
        _write_card(folder, "The folder has a UNet2DModel and its LCMScheduler.", code, "The student takes no text.")


def merged_weights(unet: nn.Module) -> dict[str, Tensor]:
    """Weights of a U-Net under the names without adapters: W + (α/r)·B·A of each layer with adapters."""
    weights = {name: value.detach() for name, value in unet.state_dict().items() if ".lora_" not in name}
    for name, module in unet.named_modules():
        if hasattr(module, "lora_A"):
            key, layer = f"{name}.base_layer.weight", module
            with torch.no_grad():
                weights[key] = weights[key] + layer.get_delta_weight(ADAPTER)
    return {name.replace(".base_layer.", "."): value.cpu().contiguous() for name, value in weights.items()}


def _scheduler(generator: Generator) -> dict[str, Any]:
    """Arguments of LCMScheduler."""
    scalings: Any = generator.model.preconditioning
    table: dict[str, Any] = {
        key: value
        for key, value in generator.config["preconditioning"].items()
        if key in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps") and value is not None
    }
    if isinstance(table.get("beta_schedule"), list):
        table = {"trained_betas": table["beta_schedule"], "num_train_timesteps": len(scalings.table)}
    return {
        **table,
        "prediction_type": scalings.prediction_type,
        "timestep_scaling": float(scalings.boundary),
        "original_inference_steps": generator.config["sampler"].get("original_steps", 50),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _index(base: Path) -> dict[str, Any]:
    """The content of model_index.json, after a check of the parts that are copied.

    Raises:
        ValueError: the file is no JSON mapping, or a part has no folder, or no weights in safetensors.
    """
    try:
        index = json.loads((base / "model_index.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--pipeline: {base}/model_index.json is no JSON ({error})") from error
    if not isinstance(index, dict):
        raise ValueError(f"--pipeline: {base}/model_index.json is no mapping")
    folders = {each.name for each in base.iterdir() if each.is_dir()}  # not "..", nor a path
    for part in _copied(index):
        source = base / part
        if part not in folders:
            fix = f'copy the part there, or write "{part}": [null, null] if the pipeline runs without it'
            raise ValueError(f"--pipeline: {base}/model_index.json names {part}, which has no folder in {base}: {fix}")
        files = [source / f"{stem}.safetensors{end}" for stem in STEMS for end in ("", ".index.json")]
        if (source / "config.json").is_file() and not any(file.is_file() for file in files):
            found = ", ".join(sorted(file.name for file in source.iterdir() if file.suffix in (".bin", ".safetensors")))
            raise ValueError(
                f"--pipeline: {source} has no {' or '.join(f'{stem}.safetensors' for stem in STEMS)}; found "
                f"{found or 'no weights'}: give a folder that DiffusionPipeline.save_pretrained wrote"
            )
    return index


def _copied(index: dict[str, Any]) -> list[str]:
    """Names of the parts that are copied: all parts that the pipeline has, but the U-Net and the scheduler."""
    parts = [part for part, value in index.items() if isinstance(value, list) and value and value[-1]]
    return [part for part in parts if part not in ("unet", "scheduler") and not part.startswith("_")]


def _copy_rest(base: Path, index: dict[str, Any], folder: Path) -> None:
    for part in _copied(index):
        shutil.copytree(base / part, folder / part, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
    content = index | {"scheduler": ["diffusers", "LCMScheduler"]}
    write_atomically(folder / "model_index.json", json.dumps(content, indent=2) + "\n")


def _write_adapters(generator: Generator, network: UNet, folder: Path, base: Path) -> None:
    """Write pytorch_lora_weights.safetensors with the names of peft, and α and r as metadata.

    Names that are converted to those of diffusers lose the adapters of all attention layers on loading (issue 14548 of
    diffusers), and without metadata α is lost.
    """
    diffusers, peft = import_extra("diffusers", "latent"), import_extra("peft", "latent")
    unet: Any = network.unet
    about = unet.peft_config[ADAPTER].to_dict()
    about = {key: sorted(about[key]) if isinstance(about[key], set) else about[key] for key in ADAPTERS}
    weights = {name: value.cpu().contiguous() for name, value in peft.get_peft_model_state_dict(unet).items()}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        str(folder), unet_lora_layers=weights, unet_lora_adapter_metadata=about
    )
    options = ", ".join(
        f"{key}={_scheduler(generator)[key]}" for key in ("original_inference_steps", "timestep_scaling")
    )
    code = LORA.format(base=json.dumps(base.name), folder=json.dumps(folder.name), options=options)
    _write_card(folder, f"The folder has adapters of rank {about['r']} for the pipeline {base.name}.", code, FREE)


def _write_card(folder: Path, what: str, code: str, guidance: str) -> None:
    title = folder.resolve().name
    write_atomically(folder / "README.md", CARD.format(title=title, what=what, code=code, guidance=guidance))
