"""The base of the networks: their interface, the checks of their conditions, dropped classes, checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Network"]


class Network(nn.Module):
    """F(x, noise_label, labels, augment[, end_label]) = body(x, embedding(noise_label, labels, augment, end_label)).

    A subclass defines `embedding` and `body`.

    Args:
        image_size: height and width.
        channels: channels of the image.
        num_classes: width of the one-hot labels; 0 for an unconditional network.
        augment_dim: width of the augmentation labels; 0 for none.
        label_dropout: probability, in training, of dropping the class of an image (for classifier-free guidance).
        checkpointing: do not store activations within blocks; the backward pass recomputes them.
        two_times: take a second noise label.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        num_classes: int,
        augment_dim: int,
        label_dropout: float = 0.0,
        checkpointing: bool = False,
        two_times: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.channels = image_size, channels
        self.num_classes, self.augment_dim, self.two_times = num_classes, augment_dim, two_times
        self.label_dropout, self.checkpointing = label_dropout, checkpointing

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        end_label: Tensor | None = None,
    ) -> Tensor:
        """F(x), shape (B, out_channels, size, size).

        Args:
            x: shape (B, channels, size, size).
            noise_label, end_label: shape (B,); end_label only for a network of two times.
            labels, augment: one-hot classes (B, num_classes) and augmentation labels (B, augment_dim); None for zeros.

        Raises:
            ValueError: labels or augmentation labels of another shape.
        """
        classes, augment = _rows(labels, self.num_classes, noise_label), _rows(augment, self.augment_dim, noise_label)
        if self.training and self.label_dropout and labels is not None:
            classes = classes * (torch.rand_like(classes[:, :1]) >= self.label_dropout)
        return self.body(x, self.embedding(noise_label, classes, augment, end_label))

    def embedding(self, noise_label: Tensor, labels: Tensor, augment: Tensor, end_label: Tensor | None) -> Tensor:
        """Compute the embedding (B, emb) that conditions every block, from arguments of the shapes of `forward`."""
        raise NotImplementedError

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F(x) for an embedding."""
        raise NotImplementedError

    def run(self, block: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """block(*args); with checkpointing, the backward pass recomputes activations instead of storing them."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def _rows(given: Tensor | None, width: int, like: Tensor) -> Tensor:
    if given is None:
        return like.new_zeros(like.shape[0], width)
    if given.shape != (like.shape[0], width):
        raise ValueError(
            f"labels of shape {tuple(given.shape)} for a batch of {like.shape[0]} and a network that takes {width} "
            f"values an image (0: no labels); pass ({like.shape[0]}, {width}), or None"
        )
    return given.to(like.dtype)
