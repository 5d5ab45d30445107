"""Inputs of the editing tasks: image files and masks of the user, or images of the run's data set."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from consistency_models.app import build
from consistency_models.app.checks.rules import nearest
from consistency_models.data.decoding import KINDS, SUFFIXES, Decoder
from consistency_models.data.files import content_of
from consistency_models.data_spec import class_index
from consistency_models.errors import ConfigError
from consistency_models.evaluation.features import to_float
from consistency_models.sampling.generator import Generator

__all__ = ["Pictures", "class_labels", "class_number", "known_pixels", "load_pictures", "refuse_points"]


@dataclass(frozen=True)
class Pictures:
    """Images to be edited.

    Args:
        images: (n, C, H, W) float in [-1, 1], of the model's shape.
        labels: (n,) classes for a class-conditional model, otherwise None.
        names: names of the n results.
        sizes: (width, height) of the n files; empty for images of the data set.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str]
    sizes: list[tuple[int, int]]


def load_pictures(config: dict[str, Any], generator: Generator, image: str | None, label: int | str | None) -> Pictures:
    """Load the images of a file or folder, scaled and cropped to the model's size; by default images of the data set.

    Args:
        config: of eval.py; `n` is the number of images, by default all files, or 10 images of the data set.
        generator: the model.
        image: a file or a folder; None: the test images of the data set, or its training images if it has no test set.
        label: the class of all images, a name or a number; None: the classes of the data set.

    Raises:
        ConfigError: an unusable file, a data set of other images, or a class that the model does not have.
    """
    refuse_points(config, generator)
    if image is None:
        images, known, names = _from_data(config, generator)
        sizes = []
    else:
        images, names, sizes = _from_files(image, generator, config["n"])
        known = None
    return Pictures(to_float(images), class_labels(generator, len(images), label, known), names, sizes)


def refuse_points(config: dict[str, Any], generator: Generator) -> None:
    """Raise ConfigError for a model of points, because editing requires images."""
    if not generator.clamp:
        task = config["task"]["_target_"].rpartition(".")[2]
        reason = f"{config['run']} makes points or latents, and not images of grey or RGB pixels"
        raise ConfigError("task", task, "evaluate", reason=reason)


def known_pixels(mask: str | None, pictures: Pictures, shape: tuple[int, ...]) -> Tensor:
    """Return the preserved pixels, bool (H, W): black pixels of the mask are preserved, white pixels are painted anew.

    Args:
        mask: an image of the model's size, or of the size of all files; it is then scaled and cropped like the files.
            Pixels darker than half are black. None: all pixels outside a centred square of half the size.
        pictures: the images that are edited.
        shape: (C, H, W) of the model's images.

    Raises:
        ConfigError: the mask cannot be decoded, has another size, or is all black or all white.
    """
    size = shape[-1]
    if mask is None:
        known = torch.ones(size, size, dtype=torch.bool)
        known[size // 4 : size - size // 4, size // 4 : size - size // 4] = False
        return known
    path = Path(mask).expanduser()
    pixels = _decode_file("task.mask", path, Decoder(size, channels=1, resize="box"))
    mask_size = _decode_file("task.mask", path, _size)
    if mask_size not in {(size, size), *([pictures.sizes[0]] if len(set(pictures.sizes)) == 1 else [])}:
        allowed = f"an image of {size}x{size} pixels, as the model makes, or as large as each file of task.image"
        raise ConfigError("task.mask", mask, allowed, reason=f"this one is {mask_size[0]}x{mask_size[1]}")
    known = torch.from_numpy(pixels[0] < 128)
    if known.all() or not known.any():
        which = "black, so that nothing is painted" if known.all() else "white, so that nothing is preserved"
        allowed = "black pixels, which are preserved, and white pixels"
        raise ConfigError("task.mask", mask, allowed, reason=f"this one is all {which}")
    return known


def class_labels(generator: Generator, n: int, label: int | str | None, known: Tensor | None) -> Tensor | None:
    """Return the classes of n images: the given label, or the known classes; None for an unconditional model.

    Raises:
        ConfigError: the model does not have this class, or requires a class.
    """
    classes = generator.num_classes
    if not classes:
        if label is not None:
            raise ConfigError("task.label", label, "null", reason="the model is unconditional")
        return None
    if label is None and known is None:
        reason = "the model is class-conditional, and these images have no labels"
        raise ConfigError("task.label", None, f"a class from 0 to {classes - 1}, or its name", reason=reason)
    return known if label is None else torch.full((n,), class_number(generator, "task.label", label))


def class_number(generator: Generator, key: str, label: int | str) -> int:
    """Return the number of a class from its name or number.

    Raises:
        ConfigError: there is no such class.
    """
    try:
        return class_index(label, generator.num_classes, generator.class_names)
    except ValueError as error:
        close = nearest(label, generator.class_names) if isinstance(label, str) else None
        raise ConfigError(key, label, str(error), f"did you mean {key}={close}?" if close else "") from error


def _from_data(config: dict[str, Any], generator: Generator) -> tuple[Tensor, Tensor | None, list[str]]:
    data = build.chosen_data(config, generator.config)
    if "_target_" not in data:
        fix = "add task.image=FILE, or data=cifar10 data.root=FOLDER"
        reason = f"{config['run']} names no data set"
        raise ConfigError("task.image", None, "an image file or a folder", fix, reason=reason)
    source = build.build_source({"data": data}, may_fetch=data is config.get("data"))
    if source.shape != generator.shape:
        allowed = f"images of shape {generator.shape}, as {config['run']} makes"
        raise ConfigError("data", data["name"], allowed, reason=f"these are {source.shape}")
    source = source.test or source
    n = min(config["n"] or 10, source.n)
    labels = source.labels[:n] if source.num_classes == generator.num_classes and source.num_classes else None
    return source.images[:n], labels, [f"{k:05d}" for k in range(n)]


def _from_files(image: str, generator: Generator, n: int | None) -> tuple[Tensor, list[str], list[tuple[int, int]]]:
    path = Path(image).expanduser()
    inside = sorted(path.iterdir()) if path.is_dir() else []
    files = [file for file in inside if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    files = files[:n] if path.is_dir() else [path]
    if not files:
        raise ConfigError("task.image", image, f"a folder with images in it ({', '.join(SUFFIXES)})")
    decoder = Decoder(generator.shape[-1], generator.shape[0])
    images = np.stack([_decode_file("task.image", file, decoder) for file in files])
    stems = [file.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [file.name for file in files]
    return torch.from_numpy(images), names, [_decode_file("task.image", file, _size) for file in files]


def _decode_file(key: str, file: Path, decoder: Callable[[bytes], Any]) -> Any:
    """Decode a file.

    Raises:
        ConfigError: the file is no image.
    """
    try:
        return decoder(content_of(file))
    except Exception as error:  # Pillow raises many types for truncated files and for files that are no images
        allowed, why = f"an image ({KINDS})", getattr(error, "strerror", None) or error
        raise ConfigError(key, file, allowed, reason=f"this file cannot be used: {why}") from error


def _size(content: bytes) -> tuple[int, int]:
    """Return (width, height) of an image file, after rotation by its EXIF orientation."""
    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).size
