"""Data sources, and the LightningDataModule that makes batches of their images."""

from typing import TYPE_CHECKING, Any

from consistency_models.data.batch import Batch, Slot
from consistency_models.data.cifar10 import cifar10
from consistency_models.data.decoding import Decoder
from consistency_models.data.digits import digits
from consistency_models.data.fashion_mnist import fashion_mnist
from consistency_models.data.image_folder import downloaded_images, image_folder
from consistency_models.data.image_set import ImageSet, sigma_data
from consistency_models.data.known_set import known_set
from consistency_models.data.latents import Latents, latents
from consistency_models.data.mixture import GaussianMixture, Mixture
from consistency_models.data.npz import npz_images
from consistency_models.data.published import Published
from consistency_models.data.sampler import StepSampler
from consistency_models.data.source import Source, check_facts
from consistency_models.errors import DataError

if TYPE_CHECKING:
    from consistency_models.data.module import DataModule

__all__ = [
    "Batch",
    "DataError",
    "DataModule",
    "Decoder",
    "GaussianMixture",
    "ImageSet",
    "Latents",
    "Mixture",
    "Published",
    "Slot",
    "Source",
    "StepSampler",
    "check_facts",
    "cifar10",
    "digits",
    "downloaded_images",
    "fashion_mnist",
    "image_folder",
    "known_set",
    "latents",
    "npz_images",
    "sigma_data",
]


def __getattr__(name: str) -> Any:
    if name == "DataModule":  # imported on first use: sampling and evaluation need sources, but not Lightning
        from consistency_models.data.module import DataModule

        return DataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
