"""Non-leaking augmentation of clean images: the network is conditioned on the parameters of the augmentation.

(EDM, arXiv 2206.00364, App. F.2; colours as in StyleGAN2-ADA, arXiv 2006.06676, App. B.)
"""

from __future__ import annotations

from functools import reduce
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from consistency_models.data.affine import LUMA, recolour, rotation, scaling, translation, turned_about_grey, warp
from consistency_models.random import BatchRandom
from consistency_models.trust import loadable
from consistency_models.values import NotNegative, Positive, Share, checked

__all__ = ["AugmentPipe"]


def reflected(size: int, shift: Tensor) -> Tensor:
    """Source index of each pixel of a row that is shifted by `shift` with reflection; (B,) to (B, size)."""
    period = max(2 * size - 2, 1)
    i = torch.arange(size) - shift[:, None]
    return size - 1 - (size - 1 - i % period).abs()


@loadable()
class AugmentPipe:
    """Random flips, rotations, translations, scalings and colour changes of images, with labels for the network.

    Each argument named in `LABELS` multiplies the probability p of one transformation. The value 0 removes the
    transformation and its labels. Transformations are applied in this order, with w ~ N(0, 1) and N pixels on an axis:

        xflip, yflip    with probability ½·min(xflip·p, 1);             label 0 or 1
        rotate_int      by k quarter turns, k in {0, 1, 2, 3};          labels [k in {1, 2}], [k in {2, 3}]
        translate_int   by d whole pixels to the right and up, d = round(u·N·translate_int_max), u ~ U(-1, 1);
                                                                        labels d_x/(N_x·translate_int_max), d_y/(…)
        scale           by 2^(scale_std·w);                             label w
        rotate_frac     by θ ~ U(-π, π)·rotate_frac_max;                labels cos θ - 1, sin θ
        aniso           by 2^(aniso_std·w) along the angle r and the inverse across; r ~ U(-π, π) with probability
                        aniso_rotate_prob, else 0;                      labels w·cos r, w·sin r
        translate_frac  by (w_x·N_x, w_y·N_y)·translate_frac_std;       labels w_x, w_y
        brightness      plus brightness_std·w;                          label w
        contrast        times 2^(contrast_std·w);                       label w
        lumaflip        grey inverted, with probability ½·min(lumaflip·p, 1);    label 0 or 1
        hue             rotated about grey by θ ~ U(-π, π)·hue_max;     labels cos θ - 1, sin θ
        saturation      the distance from grey times 2^(saturation_std·w);       label w

    The label of a transformation that is not applied to an image is 0. (w, r) and (-w, r ± π) have the same labels, as
    published. Random numbers are drawn on the host, in one stream for each transformation: they depend only on (seed,
    step, row) and never wait for the device.

    Args:
        p: probability of each transformation at multiplier 1.
        xflip: horizontal flips; 1e8 flips half of all images for any p > 0.
        yflip: vertical flips.
        rotate_int: quarter turns, of square images.
        translate_int: translation by whole pixels, with reflection at the border.
        translate_int_max: largest translation by whole pixels, as a share of the image.
        scale: isotropic scaling.
        rotate_frac: rotation by any angle.
        aniso: anisotropic scaling.
        translate_frac: translation by fractions of a pixel.
        scale_std: standard deviation of log₂ of the scale.
        rotate_frac_max: range of rotations; 1 is the full circle.
        aniso_std: standard deviation of log₂ of the anisotropic scale.
        aniso_rotate_prob: probability of anisotropic scaling along a random angle instead of along the rows.
        translate_frac_std: standard deviation of translations, as a share of the image.
        brightness: a constant added to all channels.
        contrast: a factor for all channels.
        lumaflip: inversion of grey.
        hue: rotation of colours about grey.
        saturation: a factor for the distance from grey.
        brightness_std: standard deviation of the constant.
        contrast_std: standard deviation of log₂ of the contrast.
        hue_max: range of hues; 1 is the full circle.
        saturation_std: standard deviation of log₂ of the saturation.

    Raises:
        ValueError: p or aniso_rotate_prob is not in [0, 1]; a multiplier, a standard deviation or a range is negative
            or not finite; translate_int_max is 0; or all multipliers are 0.
    """

    LABELS: ClassVar[dict[str, int]] = {
        "xflip": 1,
        "yflip": 1,
        "rotate_int": 2,
        "translate_int": 2,
        "scale": 1,
        "rotate_frac": 2,
        "aniso": 2,
        "translate_frac": 2,
        "brightness": 1,
        "contrast": 1,
        "lumaflip": 1,
        "hue": 2,
        "saturation": 1,
    }
    """Number of labels of each transformation, in the order of the labels."""

    COLOURS: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "lumaflip", "hue", "saturation")
    """Transformations that need images of three channels or of one."""

    @checked
    def __init__(
        self,
        p: Share = 1.0,
        xflip: NotNegative = 0.0,
        yflip: NotNegative = 0.0,
        rotate_int: NotNegative = 0.0,
        translate_int: NotNegative = 0.0,
        translate_int_max: Positive = 0.125,
        scale: NotNegative = 0.0,
        rotate_frac: NotNegative = 0.0,
        aniso: NotNegative = 0.0,
        translate_frac: NotNegative = 0.0,
        scale_std: NotNegative = 0.2,
        rotate_frac_max: NotNegative = 1.0,
        aniso_std: NotNegative = 0.2,
        aniso_rotate_prob: Share = 0.5,
        translate_frac_std: NotNegative = 0.125,
        brightness: NotNegative = 0.0,
        contrast: NotNegative = 0.0,
        lumaflip: NotNegative = 0.0,
        hue: NotNegative = 0.0,
        saturation: NotNegative = 0.0,
        brightness_std: NotNegative = 0.2,
        contrast_std: NotNegative = 0.5,
        hue_max: NotNegative = 1.0,
        saturation_std: NotNegative = 1.0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name != "self"}
        self.p, self.aniso_rotate_prob = p, aniso_rotate_prob
        self.chances = {name: arguments[name] for name in self.LABELS}
        self.translate_int_max, self.translate_frac_std = translate_int_max, translate_frac_std
        self.scale_std, self.aniso_std, self.rotate_frac_max = scale_std, aniso_std, rotate_frac_max
        self.brightness_std, self.contrast_std, self.saturation_std = brightness_std, contrast_std, saturation_std
        self.hue_max = hue_max
        if not self.augment_dim:
            raise ValueError("at least one transformation must have a multiplier above 0; use augment=none for none")

    @property
    def augment_dim(self) -> int:
        """Number of labels an image, the `augment_dim` of the network: 9 for EDM's six transformations, 19 for all."""
        return sum(width for name, width in self.LABELS.items() if self.chances[name] > 0)

    def __call__(self, images: Tensor, rows: BatchRandom) -> tuple[Tensor, Tensor]:
        """Augment images (B, C, H, W). Returns images and labels (B, augment_dim), on the device of the images.

        Raises:
            ValueError: quarter turns are on and the images are not square, or colour changes are on and the images have
                neither 3 channels nor 1.
        """
        labels: list[Tensor] = []
        images = self._move_pixels(images, rows, labels)
        inverse, colour = self._geometry(images, rows, labels), self._colour(images, rows, labels)
        with torch.autocast(images.device.type, enabled=False):
            images = images if inverse is None else warp(images, inverse)
            images = images if colour is None else recolour(images, colour)
        return images, torch.stack([label.float() for label in labels], 1).to(images.device, non_blocking=True)

    def _spared(self, rows: BatchRandom, name: str, drawn: Tensor) -> Tensor:
        """Set `drawn` to 0 for the images to which the transformation is not applied."""
        spared = rows.rand(f"augment/{name}/spared") >= self.chances[name] * self.p
        return drawn.masked_fill(spared.view(-1, *[1] * (drawn.ndim - 1)), 0)

    def _coin(self, rows: BatchRandom, name: str) -> Tensor:
        return self._spared(rows, name, rows.rand(f"augment/{name}") >= 0.5)

    def _normal(self, rows: BatchRandom, name: str, *shape: int) -> Tensor:
        return self._spared(rows, name, rows.randn(f"augment/{name}", *shape, dtype=torch.float64))

    def _angle(self, rows: BatchRandom, name: str, share: float) -> Tensor:
        angle = (2 * rows.rand(f"augment/{name}/angle", dtype=torch.float64) - 1) * pi * share
        return self._spared(rows, name, angle)

    def _move_pixels(self, images: Tensor, rows: BatchRandom, labels: list[Tensor]) -> Tensor:
        """Apply transformations that only permute pixels, and append their labels to `labels`."""

        def where(mask: Tensor, moved: Tensor, images: Tensor) -> Tensor:
            return torch.where(mask.to(images.device, non_blocking=True)[:, None, None, None], moved, images)

        height, width = images.shape[2:]
        for name, axis in (("xflip", 3), ("yflip", 2)):
            if self.chances[name] > 0:
                flip = self._coin(rows, name)
                images = where(flip, images.flip(axis), images)
                labels += [flip]
        if self.chances["rotate_int"] > 0:
            if height != width:
                raise ValueError(f"rotate_int turns square images; got height {height}, width {width}")
            turns = self._spared(rows, "rotate_int", (4 * rows.rand("augment/rotate_int")).floor())
            across, down = (turns == 1) | (turns == 2), turns >= 2
            images = where(across, images.flip(3), images)
            images = where(down, images.flip(2), images)
            images = where(across ^ down, images.transpose(2, 3), images)
            labels += [across, down]
        if self.chances["translate_int"] > 0:
            w = 2 * rows.rand("augment/translate_int", 2, dtype=torch.float64) - 1
            longest = torch.tensor([width, height]) * self.translate_int_max
            shift = (self._spared(rows, "translate_int", w) * longest).round()
            x, y = reflected(width, shift[:, 0].long()), reflected(height, -shift[:, 1].long())
            x, y = (index.to(images.device, non_blocking=True) for index in (x, y))
            every = torch.arange(len(images), device=images.device)[:, None, None, None]
            channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
            images = images[every, channel, y[:, None, :, None], x[:, None, None, :]]
            labels += [*(shift / longest).unbind(1)]
        return images

    def _geometry(self, images: Tensor, rows: BatchRandom, labels: list[Tensor]) -> Tensor | None:
        """Map (B, 3, 3) from pixels of the result to pixels of the images, or None. Appends its labels to `labels`."""
        maps = []
        if self.chances["scale"] > 0:
            w = self._normal(rows, "scale")
            s = (-self.scale_std * w).exp2()
            maps += [scaling(s, s)]
            labels += [w]
        if self.chances["rotate_frac"] > 0:
            w = self._angle(rows, "rotate_frac", self.rotate_frac_max)
            maps += [rotation(w)]
            labels += [w.cos() - 1, w.sin()]
        if self.chances["aniso"] > 0:
            w = rows.randn("augment/aniso", dtype=torch.float64)
            r = (2 * rows.rand("augment/aniso/angle", dtype=torch.float64) - 1) * pi
            w = self._spared(rows, "aniso", w)
            r = r.masked_fill(rows.rand("augment/aniso/upright") >= self.aniso_rotate_prob, 0)
            s = (self.aniso_std * w).exp2()
            maps += [rotation(-r) @ scaling(1 / s, s) @ rotation(r)]
            labels += [w * r.cos(), w * r.sin()]
        if self.chances["translate_frac"] > 0:
            w_x, w_y = self._normal(rows, "translate_frac", 2).unbind(1)
            height, width = (self.translate_frac_std * size for size in images.shape[2:])
            maps += [translation(-w_x * width, -w_y * height)]
            labels += [w_x, w_y]
        return reduce(torch.matmul, maps) if maps else None

    def _colour(self, images: Tensor, rows: BatchRandom, labels: list[Tensor]) -> Tensor | None:
        """Colour map (B, 3, 4), or None. Appends its labels to `labels`."""
        if not any(self.chances[name] > 0 for name in self.COLOURS):
            return None
        colour = torch.eye(3, 4, dtype=torch.float64).repeat(len(images), 1, 1)
        if self.chances["brightness"] > 0:
            w = self._normal(rows, "brightness")
            colour[:, :, 3] += self.brightness_std * w[:, None]
            labels += [w]
        if self.chances["contrast"] > 0:
            w = self._normal(rows, "contrast")
            colour = (self.contrast_std * w).exp2()[:, None, None] * colour
            labels += [w]
        if self.chances["lumaflip"] > 0:
            flip = self._coin(rows, "lumaflip")
            colour = colour - 2 * flip[:, None, None] * (LUMA @ colour)
            labels += [flip]
        if self.chances["hue"] > 0:
            w = self._angle(rows, "hue", self.hue_max)
            colour = turned_about_grey(w) @ colour
            labels += [w.cos() - 1, w.sin()]
        if self.chances["saturation"] > 0:
            w = self._normal(rows, "saturation")
            grey = LUMA @ colour
            colour = grey + (self.saturation_std * w).exp2()[:, None, None] * (colour - grey)
            labels += [w]
        return colour
