"""What a task is given to work on: the user's own image files and mask, or images of the run's data set."""

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

__all__ = ["Pictures", "known_of", "labels_of", "number_of", "pictures_of", "refuse_points"]


@dataclass(frozen=True)
class Pictures:
    """Images to be edited.

    Args:
        images: (n, C, H, W) float in [-1, 1], of the model's shape.
        labels: (n,) classes for a class-conditional model, otherwise None.
        names: what the n results are to be called.
        sizes: (width, height) of the n files; none for images of the data set.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str]
    sizes: list[tuple[int, int]]


def pictures_of(config: dict[str, Any], generator: Generator, image: str | None, label: int | str | None) -> Pictures:
    """The images in a file or folder, scaled and cropped to the model's size; by default the first of the data set.

    Args:
        config: of eval.py; `n` is how many, by default all files, and 10 images of the data set.
        generator: the model that they are for.
        image: a file or a folder; None: the test images of the data set, or its training images if it keeps none apart.
        label: the class of all of them, its name or its number; None: those of the data set.

    Raises:
        ConfigError: a file that cannot be used, a data set of other images, or a class that the model cannot take.
    """
    refuse_points(config, generator)
    if image is None:
        images, known, names = _of_data(config, generator)
        sizes = []
    else:
        images, names, sizes = _of_files(image, generator, config["n"])
        known = None
    return Pictures(to_float(images), labels_of(generator, len(images), label, known), names, sizes)


def refuse_points(config: dict[str, Any], generator: Generator) -> None:
    """Editing is for images; points of a mixture are none."""
    if not generator.clamp:
        task = config["task"]["_target_"].rpartition(".")[2]
        reason = f"{config['run']} makes points, and not images of grey or RGB pixels"
        raise ConfigError("task", task, "evaluate", reason=reason)


def known_of(mask: str | None, pictures: Pictures, shape: tuple[int, ...]) -> Tensor:
    """Which pixels are kept, bool (H, W): the black ones of the mask; white is painted anew.

    Args:
        mask: an image of the model's size, or of that of every file, which is then scaled and cropped as they are; what
            is darker than half is black. None: all but a centred square of half the size is kept.
        pictures: what it is for.
        shape: (C, H, W) of the model's images.

    Raises:
        ConfigError: it cannot be decoded, has another size, or is all black or all white.
    """
    size = shape[-1]
    if mask is None:
        known = torch.ones(size, size, dtype=torch.bool)
        known[size // 4 : size - size // 4, size // 4 : size - size // 4] = False
        return known
    path = Path(mask).expanduser()
    found = _decoded("task.mask", path, _size)
    if found not in {(size, size), *([pictures.sizes[0]] if len(set(pictures.sizes)) == 1 else [])}:
        allowed = f"an image of {size}x{size} pixels, as the model makes, or as large as each file of task.image"
        raise ConfigError("task.mask", mask, allowed, reason=f"this one is {found[0]}x{found[1]}")
    pixels = _decoded("task.mask", path, Decoder(size, channels=1, resize="box"))
    known = torch.from_numpy(pixels[0] < 128)
    if known.all() or not known.any():
        which = "black: nothing would be painted" if known.all() else "white: nothing would be kept"
        allowed = "black pixels, which are kept, and white ones"
        raise ConfigError("task.mask", mask, allowed, reason=f"this one is all {which}")
    return known


def labels_of(generator: Generator, n: int, label: int | str | None, known: Tensor | None) -> Tensor | None:
    """The class of each of n images: the one given, or those that are known; None for an unconditional model.

    Raises:
        ConfigError: a class that the model cannot take, or none where it needs one.
    """
    classes = generator.num_classes
    if not classes:
        if label is not None:
            raise ConfigError("task.label", label, "null", reason="the model is unconditional")
        return None
    if label is None and known is None:
        reason = "the model is class-conditional, and these images have no labels"
        raise ConfigError("task.label", None, f"a class from 0 to {classes - 1}, or its name", reason=reason)
    return known if label is None else torch.full((n,), number_of(generator, "task.label", label))


def number_of(generator: Generator, key: str, label: int | str) -> int:
    """The number of a class that is given by name or number.

    Raises:
        ConfigError: there is no such class.
    """
    try:
        return class_index(label, generator.num_classes, generator.class_names)
    except ValueError as error:
        close = nearest(label, generator.class_names) if isinstance(label, str) else None
        raise ConfigError(key, label, str(error), f"did you mean {key}={close}?" if close else "") from error


def _of_data(config: dict[str, Any], generator: Generator) -> tuple[Tensor, Tensor | None, list[str]]:
    data = build.chosen_data(config, generator.config)
    if "_target_" not in data:
        fix = "add task.image=FILE, or data=cifar10 data.root=FOLDER"
        reason = f"{config['run']} names no data set"
        raise ConfigError("task.image", None, "an image file or a folder", fix, reason=reason)
    source = build.build_data({"data": data}, may_fetch=data is config.get("data")).source
    if source.shape != generator.shape:
        made = f"images of shape {generator.shape}, as {config['run']} makes"
        raise ConfigError("data", data["name"], made, reason=f"these are {source.shape}")
    source = source.test or source
    n = min(config["n"] or 10, source.n)
    labels = source.labels[:n] if source.num_classes == generator.num_classes and source.num_classes else None
    return source.images[:n], labels, [f"{k:05d}" for k in range(n)]


def _of_files(image: str, generator: Generator, n: int | None) -> tuple[Tensor, list[str], list[tuple[int, int]]]:
    path = Path(image).expanduser()
    inside = sorted(path.iterdir()) if path.is_dir() else []
    files = [file for file in inside if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    files = files[:n] if path.is_dir() else [path]
    if not files:
        raise ConfigError("task.image", image, f"a folder with images in it ({', '.join(SUFFIXES)})")
    decoder = Decoder(generator.shape[-1], generator.shape[0])
    images = np.stack([_decoded("task.image", file, decoder) for file in files])
    stems = [file.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [file.name for file in files]
    return torch.from_numpy(images), names, [_decoded("task.image", file, _size) for file in files]


def _decoded(key: str, file: Path, decoder: Callable[[bytes], Any]) -> Any:
    """What the decoder makes of a file."""
    try:
        return decoder(content_of(file))
    except Exception as error:  # Pillow raises a dozen kinds for files that are cut off or no images
        allowed = f"an image ({KINDS})"
        raise ConfigError(key, file, allowed, reason=f"this file cannot be used: {error}") from error


def _size(content: bytes) -> tuple[int, int]:
    """(width, height) of an image file, upright."""
    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).size
