"""Augmentation of clean images whose parameters the network is told, so that it does not learn to generate them.

(EDM, arXiv 2206.00364, App. F.2; the way of resampling is StyleGAN2-ADA's, arXiv 2006.06676, App. B.)
"""

from __future__ import annotations

from math import log, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from consistency_models.random import BatchRandom
from consistency_models.trust import loadable

__all__ = ["AugmentPipe"]

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
    """(B,) each to (B, 3, 3)."""
    zero = torch.zeros_like(x)
    return matrix(x, zero, zero, zero, y, zero)


def rotation(angle: Tensor) -> Tensor:
    """Counter-clockwise; (B,) to (B, 3, 3)."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return matrix(cos, -sin, zero, sin, cos, zero)


def translation(x: Tensor, y: Tensor) -> Tensor:
    """(B,) each to (B, 3, 3)."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return matrix(one, zero, x, zero, one, y)


def stretch(w: Tensor) -> Tensor:
    """2^(0.2·w)."""
    return (0.2 * log(2) * w).exp()


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Images seen through an affine map, low-pass filtered so that nothing aliases.

    Args:
        images: (B, C, H, W).
        inverse: (B, 3, 3), from pixels of the result to pixels of `images`, both with their origin in the centre.
    """
    n, c, h, w = images.shape
    filters = images.new_tensor(SYM6)[None, None]
    rows, columns = filters[..., None, :], filters[..., None]
    # Every image reflects as far as it can: a margin that depended on the batch would need its values on the host, and
    # would round an image's pixels differently in another batch.
    x = F.pad(images, [w - 1, w - 1, h - 1, h - 1], mode="reflect").flatten(0, 1)[:, None]
    x = F.conv_transpose2d(x, rows, stride=(1, 2), padding=(0, 5))
    x = F.conv_transpose2d(x, columns, stride=(2, 1), padding=(5, 0)).unflatten(0, (n, c))[:, :, 0]
    # The grid has half of the filter, three pixels, beyond each side; it is in twice the resolution, half a pixel off.
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


@loadable()
class AugmentPipe:
    """Flips, scaling, rotation, stretching and translation, each at random: images to images and labels.

    Each argument but p multiplies the probability p of one transformation; 0 leaves it out, and its labels with it.

        flips      with probability ½·min(xflip·p, 1);     label 0 or 1
        scale      by 2^(0.2·w), w ~ N(0, 1);              label w
        rotate     by θ ~ U(-π, π);                        labels cos θ - 1, sin θ
        aniso      by 2^(0.2·w) along the angle r and the inverse across; r ~ U(-π, π) or, half of the time, 0;
                                                           labels w·cos r, w·sin r
        translate  by (w_x·W/8, w_y·H/8), w ~ N(0, 1);     labels w_x, w_y

    A transformation that an image is spared has label 0; w, r and -w, r ± π have the same labels, as published. The
    draws are made on the host, one stream each: they depend on (seed, step, row) alone and never wait for the device.

    Args:
        p: probability of each transformation at multiplier 1.
        xflip: horizontal flips; 1e8 flips half of all images, whatever p.
        yflip: vertical flips.
        scale: scaling.
        rotate_frac: rotation by any angle.
        aniso: stretching.
        translate_frac: translation by fractions of a pixel.

    Raises:
        ValueError: p is not in [0, 1], a multiplier is negative, or all are 0.
    """

    def __init__(
        self,
        p: float = 1.0,
        xflip: float = 0.0,
        yflip: float = 0.0,
        scale: float = 0.0,
        rotate_frac: float = 0.0,
        aniso: float = 0.0,
        translate_frac: float = 0.0,
    ) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability, in [0, 1]; got {p}")
        self.p = p
        self.chances = {
            "xflip": xflip,
            "yflip": yflip,
            "scale": scale,
            "rotate_frac": rotate_frac,
            "aniso": aniso,
            "translate_frac": translate_frac,
        }
        for name, multiplier in self.chances.items():
            if not multiplier >= 0:
                raise ValueError(f"{name} multiplies a probability and must be at least 0; got {multiplier}")
        if not self.augment_dim:
            raise ValueError("at least one transformation must have a multiplier above 0; use augment=none for none")

    @property
    def augment_dim(self) -> int:
        """Labels an image, which the network must have been built for; 9 with all transformations."""
        widths = {"xflip": 1, "yflip": 1, "scale": 1, "rotate_frac": 2, "aniso": 2, "translate_frac": 2}
        return sum(width for name, width in widths.items() if self.chances[name] > 0)

    def __call__(self, images: Tensor, rows: BatchRandom) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) augmented, and what was done to them (B, augment_dim), on the device of the images."""

        def spared(name: str) -> Tensor:
            return rows.rand(f"augment/{name}/spared") >= self.chances[name] * self.p

        def normal(name: str, *shape: int) -> Tensor:
            return rows.randn(f"augment/{name}", *shape, dtype=torch.float64)

        def angle(name: str) -> Tensor:
            return (2 * rows.rand(f"augment/{name}/angle", dtype=torch.float64) - 1) * pi

        wanted = {name for name, multiplier in self.chances.items() if multiplier > 0}
        labels, maps = [], []
        for name, axis in (("xflip", 3), ("yflip", 2)):
            if name in wanted:
                flip = (rows.rand(f"augment/{name}") >= 0.5) & ~spared(name)
                mask = flip.to(images.device, non_blocking=True)[:, None, None, None]
                images = torch.where(mask, images.flip(axis), images)
                labels += [flip]
        if "scale" in wanted:
            w = normal("scale").masked_fill(spared("scale"), 0)
            maps += [scaling(stretch(-w), stretch(-w))]
            labels += [w]
        if "rotate_frac" in wanted:
            w = angle("rotate_frac").masked_fill(spared("rotate_frac"), 0)
            maps += [rotation(w)]
            labels += [w.cos() - 1, w.sin()]
        if "aniso" in wanted:
            w, r = normal("aniso"), angle("aniso")
            w = w.masked_fill(spared("aniso"), 0)
            r = r.masked_fill(rows.rand("augment/aniso/upright") >= 0.5, 0)
            maps += [rotation(-r) @ scaling(stretch(-w), stretch(w)) @ rotation(r)]
            labels += [w * r.cos(), w * r.sin()]
        if "translate_frac" in wanted:
            w = normal("translate_frac", 2).masked_fill(spared("translate_frac")[:, None], 0)
            maps += [translation(-w[:, 0] * images.shape[3] / 8, -w[:, 1] * images.shape[2] / 8)]
            labels += [*w.unbind(1)]
        if maps:
            inverse = maps[0]
            for further in maps[1:]:
                inverse = inverse @ further
            with torch.autocast(images.device.type, enabled=False):
                images = warp(images, inverse)
        labels = torch.stack([label.to(torch.float32) for label in labels], 1)
        return images, labels.to(images.device, non_blocking=True)
