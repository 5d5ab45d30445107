"""References for generated images: images of a data set, or published statistics, which are read without pickle."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from consistency_models.data.npz import check_sizes
from consistency_models.errors import DataError
from consistency_models.files import open_regular
from consistency_models.storage.cache import source_fingerprint

__all__ = ["Reference", "identity_of"]

ARRAYS = ("arr_0.npy", "mu.npy", "sigma.npy")


@dataclass(frozen=True)
class Reference:
    """The real images of a comparison, or their statistics.

    Args:
        name: name of the reference in the names of scores.
        digest: hash of the content.
        images: (n, C, H, W) uint8 or float in [-1, 1], or None.
        labels: (n,) int64, or None.
        moments: {"mu": (F,), "sigma": (F, F)} of the Inception features, float64, from a file; or None.
    """

    name: str
    digest: str
    images: Tensor | None
    labels: Tensor | None = None
    moments: dict[str, np.ndarray] | None = None

    @classmethod
    def of(cls, data, which: str, most_bytes: int | None = None) -> Reference:
        """Read the reference that `features.reference` names.

        Args:
            data: the data set; `.test` holds the test images, or is None.
            which: train; test; or an npz file: EDM's, with mu and sigma, or OpenAI's, with images arr_0 and optionally
                mu and sigma (mu_s and sigma_s are statistics of another feature space and are ignored).
            most_bytes: limit of the memory for the arrays of a file; by default 64 MiB plus 16 times the file's size.

        Raises:
            DataError: there are no test images, the file is no such file, or its images have another size.
        """
        if which == "train":
            return cls("train", data.digest, data.images, data.labels)
        if which == "test":
            if data.test is None:
                raise DataError(f"features.reference=test: {data.name} has no separate test images: choose train")
            return cls("test", data.test.digest, data.test.images, data.test.labels)
        path = Path(which).expanduser()
        try:
            return cls._of_file(path, tuple(data.images.shape[1:]), most_bytes)
        except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
            raise DataError(
                f"features.reference={which}: {error}: allowed are train, test, and npz files with mu (F,) and sigma "
                "(F, F), or with images arr_0 (n, H, W, C) of 8 bits"
            ) from error

    @classmethod
    def _of_file(cls, path: Path, shape: tuple[int, int, int], most_bytes: int | None) -> Reference:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        images = moments = None
        if not zipfile.is_zipfile(path):
            raise ValueError(f"the file is a single array of shape {np.load(path, mmap_mode='r').shape}")
        check_sizes(path, ARRAYS, most_bytes, "features.reference_bytes")
        with np.load(path, allow_pickle=False) as file:
            if "arr_0" in file:
                array = file["arr_0"]
                if array.dtype != np.uint8 or array.ndim != 4 or len(array) < 2:
                    raise ValueError(f"arr_0 is {array.dtype} of shape {array.shape}")
                images = torch.from_numpy(array).permute(0, 3, 1, 2)
                if tuple(images.shape[1:]) != shape:
                    raise ValueError(f"the images have shape {tuple(images.shape[1:])}, the data {shape}")
            if "mu" in file and "sigma" in file:
                mu, sigma = (file[name].astype(np.float64) for name in ("mu", "sigma"))
                if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
                    raise ValueError(f"mu is of shape {mu.shape} and sigma of shape {sigma.shape}")
                if not (np.isfinite(mu).all() and np.isfinite(sigma).all() and np.allclose(sigma, sigma.T)):
                    raise ValueError("mu or sigma is not finite, or sigma is not symmetric")
                moments = {"mu": mu, "sigma": sigma}
            if images is None and moments is None:
                raise ValueError(f"the file holds {', '.join(file.files) or 'nothing'}")
        return cls(path.stem, digest, images, None, moments)


def identity_of(extractor: nn.Module) -> str:
    """Identity of a feature space: hash of its name, preprocessing, code, numbers and weights."""
    numbers = [(key, value) for key, value in vars(extractor).items() if isinstance(value, int | float | str)]
    code = [extractor.name, extractor.protocol, source_fingerprint(type(extractor)), sorted(numbers)]
    hasher = hashlib.blake2b(repr(code).encode(), digest_size=12)
    for name, value in extractor.state_dict().items():
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
