"""A small convolutional network of two times."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

__all__ = ["TwoTimes"]


class TwoTimes(nn.Module):
    """F(x, noise_label, labels, augment, end_label), images (B, channels, size, size).

    Args:
        image_size: height and width.
        channels: channels of the image.
        num_classes: width of the one-hot labels; 0 for an unconditional network.
        width: channels of the hidden layers.
        dropout: probability before the last layer.
    """

    two_times = True

    def __init__(
        self,
        image_size: Annotated[int, Ge(1)],
        channels: Annotated[int, Ge(1)],
        num_classes: Annotated[int, Ge(0)] = 0,
        width: Annotated[int, Ge(1)] = 32,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__()
        self.image_size, self.channels, self.num_classes, self.augment_dim = image_size, channels, num_classes, 0
        self.dropout = dropout
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.embed = nn.Linear(6 + num_classes, width)

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        end_label: Tensor | None = None,
    ) -> Tensor:
        """Compute F(x), shape of x."""
        times = torch.stack([noise_label, end_label], 1)
        labels = x.new_zeros(len(x), self.num_classes) if labels is None else labels
        shift = self.embed(torch.cat([times, times.sin(), times.cos(), labels], 1))[:, :, None, None]
        h = F.silu(self.first(x) + shift)
        h = h + F.silu(self.middle(h) + shift)
        return self.last(F.dropout(h, self.dropout, self.training))
