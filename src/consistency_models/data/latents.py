"""Latents of images: the posteriors of a VAE, memory-mapped from files, with captions or classes.

x = scale·(mean + std·n - shift),      n ~ N(0, 1), drawn for each image in each step
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistency_models.conditions import Prompt
from consistency_models.data.batch import Batch, Slot
from consistency_models.data.encoders import Encoders
from consistency_models.data.files import Files, content_of
from consistency_models.data.layout import classes_of
from consistency_models.data.mapped_arrays import FolderArrays, MappedArray, ZippedArrays
from consistency_models.data.source import Source
from consistency_models.errors import DataError
from consistency_models.random import BatchRandom, seed_of
from consistency_models.trust import loadable
from consistency_models.values import Count, Positive, Size, Text, checked, facts

__all__ = ["Captions", "Latents", "latents"]

NUMBERS = "latents.npy"
PROMPTS = 256  # captions of the fixed sample: 2,000 of Stable Diffusion XL would take 1.3 GB
LAYOUTS = "a folder of consistency_models.data.encode, a folder with latents.npy (n, 2·C, h, w), or EDM2's zip or files"


@dataclass(frozen=True)
class Captions:
    """The captions of images, as the text encoders of a pipeline encoded them.

    Args:
        index: (n,), the caption of each image.
        arrays: `text` (m, L, width), and for Stable Diffusion XL `pooled` (m, width) and `sizes` (n, 6).
        empty: `empty` (L, width), and for Stable Diffusion XL `empty_pooled` (width,): the condition without text.
    """

    index: MappedArray
    arrays: dict[str, MappedArray]
    empty: dict[str, Tensor]

    def __call__(self, rows: np.ndarray) -> Prompt:
        """The captions of these images, float32."""
        index = self.index(rows)
        places = {name: rows if name == "sizes" else index for name in self.arrays}
        parts = {name: torch.from_numpy(array(places[name])).float() for name, array in self.arrays.items()}
        return Prompt(**parts, **self.empty)


@dataclass(frozen=True)
class Latents(Source):
    """Latents with captions, with classes, or with neither; `latents[slot]` is a micro-batch.

    Args:
        name: name of the set in messages and in the names of metrics.
        posterior: indices -> (b, 2·C, h, w), means and standard deviations; or (b, C, h, w), means.
        shape: (C, h, w) of one latent.
        n: number of latents.
        scale, shift: (C, 1, 1) or numbers.
        sample: draw from the posterior; False takes the mean.
        captions: of the images, or None.
        classes: (n,) int64 in [0, num_classes), or None.
        num_classes: number of classes; 0 without classes.
        class_names: names of the classes; empty if classes only have numbers.
        sample_size: number of latents of the fixed sample, `images` and `labels`; metrics compare generated latents
            with the fixed sample.
        sums: checksums of the files, if there are any.
        decoder: folder of the pipeline or of the VAE that decodes pictures of samples, or None.
    """

    name: str
    posterior: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, int, int]
    n: int
    scale: Tensor
    shift: Tensor
    sample: bool = True
    captions: Captions | None = None
    classes: Tensor | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    sample_size: int = 2000
    sums: bytes = b""
    decoder: str | None = None
    is_latent = True

    def __getitem__(self, slot: Slot) -> Batch:
        rows = slot.indices.numpy()
        labels = self.captions(rows) if self.captions is not None else self.classes
        return Batch(self._drawn(slot), labels[slot.indices] if isinstance(labels, Tensor) else labels, slot.rows)

    def _drawn(self, slot: Slot) -> Tensor:
        mean, std = self._moments(slot.indices.numpy())
        return mean + std * slot.rows.randn("latent", *self.shape) if self.sample else mean

    def _moments(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of x, each (b, C, h, w) float32."""
        values = torch.from_numpy(self.posterior(rows)).float()
        mean = self.scale * (values[:, : self.shape[0]] - self.shift)
        return mean, self.scale * values[:, self.shape[0] :]

    @cached_property
    def _fixed(self) -> Tensor:
        """Indices of the fixed sample."""
        return torch.linspace(0, self.n - 1, min(self.n, self.sample_size)).round().long()

    @cached_property
    def images(self) -> Tensor:
        """The fixed sample, evenly spread over the set, (up to sample_size, C, h, w) float32."""
        count = len(self._fixed)
        return self._drawn(Slot(BatchRandom(seed_of("fixed sample"), 0, count, slice(0, count)), self._fixed))

    @property
    def labels(self) -> Tensor | None:
        """Classes of the fixed sample."""
        return None if self.classes is None else self.classes[self._fixed]

    @cached_property
    def prompts(self) -> Prompt | None:
        """Captions of the first 256 latents of the fixed sample."""
        return None if self.captions is None else self.captions(self._fixed[:PROMPTS].numpy())

    @cached_property
    def sigma_data(self) -> float:
        """σ_data, measured on the latents of the fixed sample: √(variance of the means + mean variance)."""
        mean, std = self._moments(self._fixed.numpy())
        within = std.double().square().mean() if self.sample else 0.0
        return (mean.double().var(correction=0) + within).sqrt().item()

    def pictures(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of latents x; without a decoder the first three channels as colours."""
        if self.decoder is None:
            colours = latents[:, torch.arange(3).clamp(max=self.shape[0] - 1)]
            return (colours / (3 * self.sigma_data)).clamp(-1, 1)
        return _vae(self.decoder).decoded(latents / self.scale + self.shift).clamp(-1, 1)

    @cached_property
    def digest(self) -> str:
        """Hash of the fixed sample, its classes, and the checksums of the files."""
        content = hashlib.blake2b(f"{self.n} {self.shape} {self.sample}".encode() + self.sums, digest_size=16)
        content.update(self.images.numpy())
        if self.labels is not None:
            content.update(self.labels.numpy())
        return content.hexdigest()


@facts(is_latent=True)
@loadable()
@checked
def latents(
    root: Text | Path,
    channels: Size = 4,
    sample: bool = True,
    scale: Positive | Sequence[Positive] | None = None,
    shift: float | Sequence[float] | None = None,
    sample_size: Size = 2000,
    num_classes: Count | None = None,
    name: Text = "latents",
    decoder: Text | None = None,
) -> Latents:
    """Open encoded images.

    `root` is a folder that `consistency_models.data.encode` wrote, a folder with `latents.npy` (n, 2·C, h, w), or
    (n, C, h, w) for means only, and optionally `labels.npy` (n,), or a zip or folder of EDM2 (arXiv 2312.02696): an npy
    file (2·C, h, w) for each image, and `dataset.json` with {"labels": [[file, class], …]}.

    Args:
        root: see above.
        channels: C.
        sample: draw from the posterior in each step; False takes the mean.
        scale, shift: x = scale·(latent - shift); numbers, or one number a channel. None: of the folder's meta.json.
        sample_size: see `Latents`.
        num_classes: number of classes; None: the classes of the files. Classes may be missing in a part of a data set.
        name: name of the data set.
        decoder: folder of a pipeline, or of an AutoencoderKL, that decodes pictures of samples; None shows the first
            three channels of latents as colours.

    Raises:
        DataError: the files are missing, damaged or incomplete, or differ from the arguments.
    """
    root = Path(root).expanduser()
    about: dict[str, Any] = {}
    captions = classes = None
    if root.is_file() or ((root / "dataset.json").is_file() and not (root / NUMBERS).is_file()):
        posterior: Any = ZippedArrays(root) if root.is_file() else FolderArrays(root)
        files = Files.open(root)
        if "dataset.json" in files.stamps:
            classes = classes_of(files, posterior.names)
    else:
        about = _about(root)
        posterior = MappedArray(root / NUMBERS)
        classes = MappedArray(root / "labels.npy")(slice(None)) if (root / "labels.npy").is_file() else None
        captions = _captions(root) if (root / "caption.npy").is_file() else None
    if len(posterior.shape) != 4 or not posterior.shape[0]:
        raise DataError(f"{posterior.path} has the shape {posterior.shape}; (n, {2 * channels}, h, w) is needed")
    n, found, *size = posterior.shape
    if found not in (channels, 2 * channels):
        raise DataError(
            f"{posterior.path} has {found} channels; data.channels={channels} needs {2 * channels} (means and standard "
            f"deviations) or {channels} (means): set data.channels"
        )
    if sample and found == channels:
        raise DataError(f"{posterior.path} has means only: set data.source.sample=false")
    scale, shift = (_factor(root, about, channels, key, value) for key, value in (("scale", scale), ("shift", shift)))
    if classes is not None:
        classes = torch.as_tensor(np.asarray(classes, np.int64))
        if classes.shape != (n,) or classes.min() < 0:
            raise DataError(f"{root}: labels must be {n} numbers from 0 on; got {tuple(classes.shape)}")
    count = about.get("classes") or (0 if classes is None else int(classes.max()) + 1)
    names = tuple(about.get("class_names") or ())
    if num_classes and count > num_classes:
        raise DataError(
            f"{root} has {count} classes, but data.num_classes is {num_classes}: set data.num_classes={count}"
        )
    if decoder is not None:
        _vae(decoder)  # raises before a training begins
    sums = content_of(root / "SHA256SUMS") if (root / "SHA256SUMS").is_file() else b""
    return Latents(
        name=name,
        posterior=posterior,
        shape=(channels, *size),
        n=n,
        scale=scale,
        shift=shift,
        sample=sample,
        captions=captions,
        classes=classes,
        num_classes=(num_classes or count) if classes is not None else 0,
        class_names=names if classes is not None and len(names) == (num_classes or count) else (),
        sample_size=sample_size,
        sums=sums,
        decoder=decoder,
    )


@lru_cache(maxsize=1)  # pictures are decoded many times in a run
def _vae(decoder: str) -> Encoders:
    folder = Path(decoder).expanduser()
    return Encoders(folder / "vae" if (folder / "vae").is_dir() else folder)


def _about(root: Path) -> dict[str, Any]:
    """The content of meta.json, if there is one."""
    if not (root / NUMBERS).is_file() or (root / "progress.json").is_file():
        found = "an encoding that is not complete" if (root / "progress.json").is_file() else "nothing of the kind"
        fix = f"; {root}.part is not complete: run the encoding again" if Path(f"{root}.part").is_dir() else ""
        raise DataError(f"data.root={root}: found {found}; allowed: {LAYOUTS}{fix}")
    if not (root / "meta.json").is_file():
        return {}
    try:
        about = json.loads(content_of(root / "meta.json"))
        return {key: about[key] for key in ("scale", "shift", "classes", "class_names")}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{root}/meta.json cannot be read ({error!r:.200}): encode the images again") from error


def _factor(
    root: Path, about: dict[str, Any], channels: int, key: str, value: float | Sequence[float] | None
) -> Tensor:
    """scale or shift, of the argument or else of meta.json, shape (1 or C, 1, 1)."""
    value = about.get(key) if value is None else value
    if value is None:
        raise DataError(f"data.source.{key} is null, but {root} has no meta.json: set it, as 0.18215 and 0 for SD 1.5")
    if isinstance(value, list | tuple) and len(value) != channels:
        raise DataError(f"data.source.{key} has {len(value)} numbers; 1 or {channels} are needed")
    return torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


def _captions(root: Path) -> Captions:
    names = [name for name in ("text", "pooled", "sizes") if name == "text" or (root / f"{name}.npy").is_file()]
    arrays = {name: MappedArray(root / f"{name}.npy") for name in names}
    empty = {
        name: torch.from_numpy(MappedArray(root / f"{name}.npy")(slice(None))).float()
        for name in ("empty", *(["empty_pooled"] if "pooled" in arrays else []))
    }
    return Captions(MappedArray(root / "caption.npy"), arrays, empty)
