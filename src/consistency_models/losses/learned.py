"""A weighting of the loss that is learned with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consistency_models.networks.layers import Linear, PositionalEmbedding
from consistency_models.values import Positive, Size, checked

__all__ = ["LogWeight"]


class LogWeight(nn.Module):
    """w(σ) = linear(embedding(arctan(σ/σ_d))), the logarithm of a weight; initialised to 0.

    A method that minimises e^w·L - w learns e^w = 1/E[L | σ], with which every level has the same share of the loss.
    (EDM2, arXiv 2312.02696, Eq. 14 to 16; sCM, arXiv 2410.11081, Eq. 8.)

    Args:
        sigma_data: σ_d, the standard deviation of the data.
        channels: width of the positional embedding.
        scale: scale of the embedding; the angle spans [0, π/2].
    """

    @checked
    def __init__(self, sigma_data: Positive = 0.5, channels: Size = 128, scale: Positive = 50.0) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.embedding = PositionalEmbedding(channels, scale)
        self.linear = Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, sigma: Tensor) -> Tensor:
        """w, for levels σ of shape (B,)."""
        angle = torch.atan(sigma / self.sigma_data)
        return self.linear(self.embedding(angle)).squeeze(1)
