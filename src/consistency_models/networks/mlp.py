"""A small multilayer perceptron, for low-dimensional data and for tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consistency_models.networks.layers import Linear, dropout
from consistency_models.networks.network import Network
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Count, Size, checked

__all__ = ["MLP"]


@loadable()
class MLP(Network):
    """Residual perceptron on the flattened image; F(x, noise_label, labels, augment[, end_label]).

        h = W_x x + W_e [c, sin(c·f), cos(c·f), labels, augment],  f = 0.5 … 8 in equal ratios, c the noise label
        h ← h + W_i dropout(silu(h)),  i = 1 … depth;   F = W silu(h)

    Args:
        image_size: height and width; 1 for points.
        channels: channels of the image, or dimension of points.
        num_classes: width of the one-hot labels; 0 for an unconditional network.
        augment_dim: width of the augmentation labels; 0 for none.
        dropout: probability before each layer.
        width: number of hidden units.
        depth: number of residual layers.
        two_times: take a second noise label, through a second W_e that is initialised to 0.
        outputs: number of images in the result, one behind the other in the channels; 2: with a second head.
    """

    freqs: Tensor

    @checked
    def __init__(
        self,
        image_size: Size,
        channels: Size,
        num_classes: Count = 0,
        augment_dim: Count = 0,
        dropout: BelowOne = 0.0,
        *,
        width: Size = 128,
        depth: Count = 3,
        two_times: bool = False,
        outputs: Size = 1,
    ) -> None:
        super().__init__(image_size, channels, num_classes, augment_dim, two_times=two_times)
        self.dropout, self.outputs = dropout, outputs
        size = channels * image_size**2
        self.register_buffer("freqs", 0.5 * 2 ** torch.linspace(0, 4, 8), persistent=False)
        self.embed = Linear(1 + 2 * len(self.freqs) + num_classes + augment_dim, width)
        self.first = nn.Linear(size, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, outputs * size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        if two_times:
            self.embed_end = Linear(1 + 2 * len(self.freqs), width, bias=False)
            nn.init.zeros_(self.embed_end.weight)

    def features(self, noise_label: Tensor) -> Tensor:
        """[c, sin(c·f), cos(c·f)], shape (B, 17)."""
        c = noise_label[:, None]
        return torch.cat([c, (c * self.freqs).sin(), (c * self.freqs).cos()], 1)

    def embedding(self, noise_label: Tensor, labels: Tensor, augment: Tensor, end_label: Tensor | None) -> Tensor:
        """W_e [c, sin(c·f), cos(c·f), labels, augment], shape (B, width)."""
        c = self.features(noise_label)
        emb = self.embed(torch.cat([c, labels, augment], 1))
        if self.two_times:
            emb = emb + self.embed_end(self.features(end_label))  # type: ignore[arg-type]  # two_times needs both labels
        return emb

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F(x), shape (B, outputs·channels, size, size), for the embedding (B, width)."""
        h = self.first(x.flatten(1)) + emb
        for layer in self.layers:
            h = h + layer(dropout(F.silu(h), self.dropout, self.training))
        return self.last(F.silu(h)).view(len(x), self.outputs * x.shape[1], *x.shape[2:])
