"""The model of an official checkpoint: a network of this package with the weights and preconditioning of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from consistency_models.errors import CheckpointError
from consistency_models.noise.preconditioned import Preconditioned

__all__ = ["Pretrained", "check_shapes", "fill"]


@dataclass(frozen=True)
class Pretrained:
    """A model from an official checkpoint, in eval mode, with parameters that require no gradient.

    Args:
        model: model(x, sigma, labels=None, augment=None) -> denoised, for one-hot labels; the names of the parameters
            of `model.network` are the official ones.
        kind: the official class of the model, such as "EDMPrecond", or "OpenAI".
        sigma_data: standard deviation of the data that the preconditioning assumes; 0.5 if it assumes none.
        sigma_min: lowest level of the model.
        sigma_max: highest level of the model.
        image_size: height and width.
        channels: of the images.
        num_classes: width of the labels; 0 for an unconditional model.
        digest: sha256 of the file.
        steps: published step counts.
        clamp: the model makes images in [-1, 1]; False for latents.
        recipe: constructors of `network`, `preconditioning` and `sampler` with their keyword arguments; empty for a
            network that the caller passed.
    """

    model: Preconditioned
    kind: str
    sigma_data: float
    sigma_min: float
    sigma_max: float
    image_size: int
    channels: int
    num_classes: int
    digest: str
    steps: tuple[int, ...]
    recipe: dict[str, partial] = field(default_factory=dict)
    clamp: bool = True


def fill(make: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """Build the network and load these weights, which must be exactly its parameters and buffers.

    Names and shapes are compared on the meta device, before memory is allocated.

    Raises:
        CheckpointError: a name or a shape differs.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    check_shapes(expected, {name: tuple(value.shape) for name, value in weights.items()})
    network = make()
    network.load_state_dict(weights)
    return network.requires_grad_(False)


def check_shapes(own: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the tensors of a network with the names and shapes that a file has.

    Raises:
        CheckpointError: a name or a shape differs.
    """
    expected = {name: tuple(value.shape) for name, value in own.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise CheckpointError(f"{name} of shape {expected.get(name)}", f"{found.get(name)}")
