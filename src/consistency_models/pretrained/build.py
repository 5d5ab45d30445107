"""What an official checkpoint becomes: one of our networks with the file's weights, in the file's preconditioning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from consistency_models.errors import CheckpointError
from consistency_models.noise.preconditioning import Preconditioned

__all__ = ["Pretrained", "fill"]


@dataclass(frozen=True)
class Pretrained:
    """A model of others, ready to be called: in eval mode, its parameters without gradients.

    Args:
        model: model(x, sigma, labels=None, augment=None) -> denoised, for one-hot labels; the names of the parameters
            of `model.network` are the official ones.
        kind: the official class of the model, as "EDMPrecond", or "OpenAI".
        sigma_data: the standard deviation of the data that its preconditioning assumes; 0.5 if it assumes none.
        sigma_min: the lowest level that it was made for.
        sigma_max: the highest.
        image_size: height and width.
        channels: of the images.
        num_classes: width of the labels; 0 for an unconditional model.
        digest: sha256 of the file.
        steps: step counts at which it was published.
        recipe: how `network`, `preconditioning` and a `sampler` for such a file are made, each a class or function and
            its keyword arguments; empty for a network that was given from outside.
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


def fill(make: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The network with these weights, which must be all of its parameters and buffers and nothing else.

    Names and shapes are compared before any memory is asked for.

    Raises:
        CheckpointError: a name or a shape differs.
    """
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise CheckpointError(f"{name} of shape {expected.get(name)}", f"{found.get(name)}")
    network = make()
    network.load_state_dict(weights)
    return network.requires_grad_(False)
