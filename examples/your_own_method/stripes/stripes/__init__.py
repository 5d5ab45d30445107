"""An example package with a data source, a distance and a schedule."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from consistency_models.data import ImageSet
from consistency_models.noise.schedules import Levels
from consistency_models.random import BatchRandom

__all__ = ["LogCosh", "LogUniform", "stripes"]


def stripes(n: Annotated[int, Ge(4)] = 256, image_size: Annotated[int, Ge(2)] = 8, seed: int = 0) -> ImageSet:
    """Generate n images of horizontal (class 0) or vertical (class 1) stripes with a random phase.

    Args:
        n: number of images.
        image_size: height and width.
        seed: seed of the phases.
    """
    phase = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    wave = (torch.arange(image_size) * (4 * math.pi / image_size) + phase).sin()  # (n, size): two stripes
    images = wave[:, None, :, None].expand(n, 1, image_size, image_size)
    labels = torch.arange(n) % 2
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, images, images.transpose(2, 3))
    return ImageSet("stripes", (127.5 * (images + 1)).round().to(torch.uint8), labels, num_classes=2)


class LogCosh(nn.Module):
    """d(x, y) = mean over the image of s²·ln cosh((x - y)/s), shape (B,): l2/2 near 0, l1 far away.

    Args:
        scale: s.
    """

    def __init__(self, scale: Annotated[float, Gt(0)] = 0.1) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute d, shape (B,)."""
        ratio = ((x - y) / self.scale).abs()
        log_cosh = ratio + torch.nn.functional.softplus(-2 * ratio) - math.log(2)
        return self.scale**2 * log_cosh.flatten(1).mean(1)


class LogUniform:
    """ln t uniform between two levels, s = t/ratio.

    Args:
        sigma_min, sigma_max: lowest and highest level t.
        ratio: t/s.
    """

    def __init__(
        self,
        sigma_min: Annotated[float, Gt(0)] = 0.002,
        sigma_max: Annotated[float, Gt(0)] = 80.0,
        ratio: Annotated[float, Gt(1)] = 1.3,
    ) -> None:
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must be less than sigma_max; got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max, self.ratio = sigma_min, sigma_max, ratio

    def __call__(self, rows: BatchRandom, k: int, K: int) -> Levels:
        """Draw the levels of these rows, with the same law at every step; float32, shape (len(rows),)."""
        u = rows.rand("levels", dtype=torch.float64)
        high = (math.log(self.sigma_min) + u * math.log(self.sigma_max / self.sigma_min)).exp()
        return Levels(high=high.float(), low=(high / self.ratio).float())
