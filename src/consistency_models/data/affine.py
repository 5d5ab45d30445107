"""Affine maps of pixel positions and of colours, one for each image of a batch.

(Resampling and colour maps as in StyleGAN2-ADA, arXiv 2006.06676, App. B.)
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["recolour", "rotation", "scaling", "translation", "turned_about_grey", "warp"]

# Low-pass filter of the symlet with six vanishing moments: Σ h = √2, Σ h_k·h_(k+2m) = δ_m.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)


def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    """[[a, b, c], [d, e, f], [0, 0, 1]] for each image: (B,) each to (B, 3, 3)."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, c, d, e, f, zero, zero, one], 1).unflatten(1, (3, 3))


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """Scaling by x and y; (B,) each to (B, 3, 3)."""
    zero = torch.zeros_like(x)
    return matrix(x, zero, zero, zero, y, zero)


def rotation(angle: Tensor) -> Tensor:
    """Counter-clockwise rotation; (B,) to (B, 3, 3)."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return matrix(cos, -sin, zero, sin, cos, zero)


def translation(x: Tensor, y: Tensor) -> Tensor:
    """Translation by x and y; (B,) each to (B, 3, 3)."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return matrix(one, zero, x, zero, one, y)


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Resample images with an affine map. A low-pass filter prevents aliasing.

    Args:
        images: (B, C, H, W).
        inverse: (B, 3, 3), maps pixels of the result to pixels of `images`; the origin of both is the centre.
    """
    n, c, h, w = images.shape
    filters = images.new_tensor(SYM6)[None, None]
    rows, columns = filters[..., None, :], filters[..., None]
    # The margin is as large as reflection allows. A margin that depended on the maps of the batch would have to be
    # computed on the host, and rounding errors of an image would depend on the other images of its batch.
    x = F.pad(images, [w - 1, w - 1, h - 1, h - 1], mode="reflect").flatten(0, 1)[:, None]
    x = F.conv_transpose2d(x, rows, stride=(1, 2), padding=(0, 5))
    x = F.conv_transpose2d(x, columns, stride=(2, 1), padding=(5, 0)).unflatten(0, (n, c))[:, :, 0]
    # The grid has twice the resolution, is shifted by half a pixel, and exceeds each side by half of the filter (three
    # pixels).
    grid_h, grid_w = 2 * (h + 6), 2 * (w + 6)
    half = inverse.new_full((n,), 0.5)
    inverse = scaling(4 * half, 4 * half) @ inverse @ scaling(half, half)
    inverse = translation(-half, -half) @ inverse @ translation(half, half)
    to_unit = scaling(4 * half / x.shape[3], 4 * half / x.shape[2])
    theta = to_unit @ inverse @ scaling(half * grid_w, half * grid_h)
    theta = theta[:, :2].to(images.device, images.dtype, non_blocking=True)
    x = F.grid_sample(x, F.affine_grid(theta, [n, c, grid_h, grid_w], align_corners=False), align_corners=False)
    x = F.conv2d(x.flatten(0, 1)[:, None], rows, stride=(1, 2), padding=(0, 5))
    x = F.conv2d(x, columns, stride=(2, 1), padding=(5, 0)).unflatten(0, (n, c))[:, :, 0]
    return x[:, :, 3:-3, 3:-3].contiguous()


LUMA = torch.full((3, 3), 1 / 3, dtype=torch.float64)
"""v·vᵀ for v = (1, 1, 1)/√3: projects a colour to grey (the mean over the channels, in each channel)."""


def turned_about_grey(angle: Tensor) -> Tensor:
    """cos θ·I + (1 - cos θ)·v·vᵀ + sin θ·[v]×, v = (1, 1, 1)/√3: rotation of colours about grey; (B,) to (B, 3, 3)."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], dtype=angle.dtype) / sqrt(3)
    return cos * torch.eye(3, dtype=angle.dtype) + (1 - cos) * LUMA.to(angle.dtype) + sin * cross


def recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Replace the colour c of each pixel by A·c + b. Images of one channel take the mean over the result's channels.

    Args:
        images: (B, 3, H, W) or (B, 1, H, W).
        colour: (B, 3, 4), [A | b].

    Raises:
        ValueError: the number of channels is neither 3 nor 1.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"colour maps need images of 3 channels or of 1; got {images.shape[1]} channels")
    if images.shape[1] == 1:
        gain, offset = colour[:, :, :3].sum(2).mean(1), colour[:, :, 3].mean(1)
        colour = torch.stack([gain, offset], 1)[:, None]
    colour = colour.to(images.device, images.dtype, non_blocking=True)
    return (colour[:, :, :-1] @ images.flatten(2) + colour[:, :, -1:]).view_as(images)
