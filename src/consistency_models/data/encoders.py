"""The encoders of a diffusers pipeline in a folder: its VAE and its text encoders, in float32.

Only classes that are named here are built, and only safetensors files are read: nothing of the folder is executed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistency_models.data.files import content_of
from consistency_models.errors import DataError, import_extra
from consistency_models.files import sha256_of

__all__ = ["Encoders"]

VAE, TEXT, TOKENIZER = "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer"
PARTS = {"vae": VAE, "text_encoder": TEXT, "tokenizer": TOKENIZER}
PIPELINES = {
    "StableDiffusionPipeline": PARTS,
    "StableDiffusionXLPipeline": PARTS | {"text_encoder_2": f"{TEXT}WithProjection", "tokenizer_2": TOKENIZER},
}
"""Classes of the parts of each pipeline."""
WEIGHTS = {"vae": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model"}

ZEROS = "force_zeros_for_empty_prompt"  # an option of StableDiffusionXLPipeline


class Encoders:
    """VAE and text encoders of a folder.

    Args:
        folder: a StableDiffusionPipeline, a StableDiffusionXLPipeline, or an AutoencoderKL alone, which encodes no
            text.
        device: device of the encoders.

    Attributes:
        kind: name of the class of the folder.
        digests: SHA-256 of the weights of each part.
        factor: pixels of an image on one pixel of its latent, in each direction.
        shift, scale: the model's space is scale·(latent - shift); numbers, or a list of one number a channel.
        truncated: number of texts so far that had more tokens than the text encoder takes.

    Raises:
        DataError: the folder is of another class, a part is missing, of another class, or damaged, or its weights are
            pickles.
        ModuleNotFoundError: the extra `latent` is not installed.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        folder = Path(folder).expanduser()
        self.kind, places = _parts(folder)
        self.device, self.truncated, self.digests = torch.device(device), 0, {}
        loaded = {part: self._load(part, name, place) for part, (name, place) in places.items()}
        self._vae = loaded["vae"]
        config = self._vae.config
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.shift: float | list[float] = list(config.latents_mean or ()) or config.shift_factor or 0.0
        stds = config.latents_std
        self.scale: float | list[float] = config.scaling_factor
        if stds:
            self.scale = [config.scaling_factor / std for std in stds]
        self._pipeline = None
        if self.kind != VAE:
            # The pipeline's own encode_prompt gives the embeddings that a pipeline gives.
            rest: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            if "tokenizer_2" in loaded:
                rest = {"add_watermarker": False, ZEROS: bool(_json(folder / "model_index.json").get(ZEROS, True))}
            make = getattr(import_extra("diffusers", "latent"), self.kind)
            self._pipeline = make(**loaded, unet=None, scheduler=None, **rest)

    @property
    def takes_text(self) -> bool:
        """Whether there are text encoders."""
        return self._pipeline is not None

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) uint8: mean and standard deviation of the posterior, (B, 2·C, h, w) float32."""
        pixels = images.to(self.device).float() / 127.5 - 1
        posterior = self._vae.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.std], 1).cpu()

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) in the space of the VAE: images (B, 3, H, W), about in [-1, 1], on the CPU."""
        parts = [self._vae.decode(part.to(self.device)).sample.cpu() for part in latents.split(8)]
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Encode texts: {"text": (B, L, width)}, and for Stable Diffusion XL "pooled": (B, width); float32."""
        pipeline: Any = self._pipeline
        limit = pipeline.tokenizer.model_max_length
        self.truncated += sum(len(ids) > limit for ids in pipeline.tokenizer(list(texts)).input_ids)
        settings = {"device": self.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        text, _, *pooled = pipeline.encode_prompt(list(texts), **settings)
        return {"text": text.cpu()} | ({"pooled": pooled[0].cpu()} if pooled else {})

    def empty(self) -> dict[str, Tensor]:
        """The condition without text, as `texts`, (L, width) and (width,): zeros for Stable Diffusion XL."""
        empty = {name: value[0] for name, value in self.texts([""]).items()}
        zeros = self._pipeline is not None and self._pipeline.config.get(ZEROS, False)
        return {name: torch.zeros_like(value) for name, value in empty.items()} if zeros else empty

    def _load(self, part: str, name: str, place: Path) -> Any:
        library = import_extra("diffusers" if name == VAE else "transformers", "latent")
        options: dict[str, Any] = {"local_files_only": True}
        if part in WEIGHTS:
            file, variant = _weights(place, WEIGHTS[part])
            self.digests[part] = sha256_of(file)
            options |= {"use_safetensors": True, "variant": variant, "torch_dtype": torch.float32}
        try:
            made = getattr(library, name).from_pretrained(str(place), **options)
        except Exception as error:  # the libraries raise many kinds of errors for damaged files
            raise DataError(f"{place}: {name} cannot be loaded ({error!s:.300}): download the folder again") from error
        return made.to(self.device).eval().requires_grad_(False) if part in WEIGHTS else made


def _parts(folder: Path) -> tuple[str, dict[str, tuple[str, Path]]]:
    """The class of a folder, and class and place of each of its parts that encode."""
    if not (folder / "model_index.json").is_file():
        kind = _json(folder / "config.json").get("_class_name") if (folder / "config.json").is_file() else "nothing"
        if kind != VAE:
            raise DataError(
                f"{folder} holds {kind}; a folder with model_index.json of {' or '.join(PIPELINES)} is needed, or one "
                f"with config.json of {VAE}"
            )
        return VAE, {"vae": (VAE, folder)}
    index = _json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise DataError(f"{folder}/model_index.json names the class {kind!s:.80}; allowed: {', '.join(PIPELINES)}")
    places = {}
    for part, name in PIPELINES[kind].items():
        found = (index.get(part) or [None, None])[-1]
        if str(found).removesuffix("Fast") != name:
            raise DataError(f"{folder}/model_index.json names {part} {found!s:.80}; a {kind} has {name}")
        if not (folder / part).is_dir():
            raise DataError(f"{folder} has no {part}, which its model_index.json names: download the whole folder")
        places[part] = (name, folder / part)
    return kind, places


def _weights(place: Path, name: str) -> tuple[Path, str | None]:
    """The safetensors file of a part, after a check of its header, and the variant in its name."""
    safetensors = import_extra("safetensors", "latent")
    for variant in (None, "fp16"):
        file = place / (f"{name}.{variant}.safetensors" if variant else f"{name}.safetensors")
        if file.is_file():
            try:
                with safetensors.safe_open(file, framework="pt"):
                    return file, variant
            except Exception as error:
                raise DataError(f"{file} is truncated or damaged ({error}): download the file again") from error
    pickles = sorted(path.name for path in place.glob("*.bin"))
    if pickles:
        raise DataError(
            f"{place} has the weights {pickles[0]}, a pickle, which can run code; {name}.safetensors is needed: "
            "convert the folder by diffusers' save_pretrained(FOLDER, safe_serialization=True) where it may run"
        )
    raise DataError(f"{place} has no {name}.safetensors: download the whole folder")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(content_of(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error!s:.200}): download the file again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no JSON object: download the file again")
    return content
