"""Zero-shot editing: images that agree with a measurement of an image, by a model that was not trained for editing.

A measurement has two methods, for images of shape (B, C, H, W) in [-1, 1]:

    measure(image) -> y        the known part, in the shape of the image; measure(y) = y
    replace(y, x) -> x         the image nearest to x that agrees with y:  measure(replace(y, x)) = y

`edit` is multistep consistency sampling in which each output of the model is made to agree before noise is added. In
the paper's terms replace(y, x) = A⁻¹[(A y)(1 - Ω) + (A x) Ω].  (Song et al., Consistency Models, arXiv 2303.01469,
Alg. 4 and App. D.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from consistency_models.noise.schedules import karras_grid
from consistency_models.sampling.samplers import Consistency
from consistency_models.sampling.solvers import Denoiser

__all__ = [
    "Colorization",
    "Inpainting",
    "SuperResolution",
    "Unconstrained",
    "edit",
    "estimate_sigma",
    "grid_of",
    "slerp",
]


@torch.no_grad()
def edit(
    denoiser: Denoiser,
    y: Tensor,
    replace: Callable[[Tensor, Tensor], Tensor],
    sigmas: Sequence[float],
    randn: Callable[[], Tensor],
    sigma_min: float = 0.002,
    end: float | None = None,
    x: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """x = y + σ_1·z; then for each level, x ← replace(y, f(x, σ_i)) and, if more follow, + √(σ_{i+1}² - σ_min²)·z.

    The measurement also replaces the known part after the last call, without clamping: measure(result) = y.

    Args:
        denoiser: `f(x, sigma)`, a consistency function, or another map from any level to the end of the ODE.
        y: the measurement, shape (B, C, H, W).
        replace: makes images agree with y.
        sigmas: σ_1 > σ_2 > …, the levels at which f is called.
        randn: standard normal noise, shape of y.
        sigma_min: the level of the output of f.
        end: the level of the result; by default `sigma_min`, and no noise is added after the last call.
        x: the image at level σ_1 to start from, by default y + σ_1·z.  (The official JAX notebook adds no noise there,
            by multiplying with an index in place of the level; the paper does.)
        clip: clamp the output of f to [-1, 1] before it is made to agree, as the official code does.

    Returns:
        Images, shape of y.

    Raises:
        ValueError: levels as refused by `samplers.Consistency`.
    """
    sampler = Consistency(sigmas, sigma_min, end=end)
    start = y / sampler.sigmas[0] + randn() if x is None else x / sampler.sigmas[0]

    def agreeing(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        return replace(y, denoised.clamp(-1, 1) if clip else denoised)

    return sampler(agreeing, start, randn)


def grid_of(points: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0) -> tuple[float, ...]:
    """The levels at which Alg. 4 calls f, descending: a Karras grid of `points` without the last point, where f is the
    identity. The paper takes 40 points.

    Raises:
        ValueError: fewer than 2 points, or a range as in `karras_grid`.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, the first and the last; got {points}")
    return tuple(karras_grid(points, sigma_min, sigma_max).flip(0)[:-1].tolist())


class Inpainting:
    """y = known·image + (1 - known)·fill,   replace(y, x) = known·y + (1 - known)·x:  known pixels exactly.

    Args:
        known: bool or 0 and 1, broadcasting against (B, C, H, W); true where pixels are kept.
        fill: value of unknown pixels in `measure`: 0 in the paper and in JAX, -1 in the official PyTorch code. Under
            the noise of the first level the value makes no difference.

    Raises:
        ValueError: `known` has other values; in `measure`, it does not broadcast against the images.
    """

    def __init__(self, known: Tensor, fill: float = 0.0) -> None:
        if not ((known == 0) | (known == 1)).all():
            raise ValueError("known must be true or false (1 or 0) for each pixel; threshold it first")
        self.known, self.fill = known.bool(), fill

    def measure(self, image: Tensor) -> Tensor:
        """Known pixels, the others at `fill`."""
        try:
            return torch.where(self.known.to(image.device), image, self.fill).reshape(image.shape)
        except RuntimeError as error:
            shapes = f"{tuple(self.known.shape)} for images of {tuple(image.shape)}"
            raise ValueError(f"known must broadcast against the images; got {shapes}") from error

    def replace(self, y: Tensor, x: Tensor) -> Tensor:
        """Known pixels of y, the others of x."""
        return torch.where(self.known.to(x.device), y, x)


class Colorization:
    """y = v vᵀ image at each pixel,   replace(y, x) = v vᵀ y + (I - v vᵀ) x,   v ∝ (0.2989, 0.5870, 0.1140), ‖v‖ = 1.

    The brightness is known, the two colours orthogonal to it are not. y is no grey image; `grey` converts it.

    Raises:
        ValueError: in `measure`, the images do not have 3 channels.
    """

    weights = (0.2989, 0.5870, 0.1140)  # of red, green and blue in the brightness

    def _brightness(self, image: Tensor) -> Tensor:
        v = F.normalize(image.new_tensor(self.weights), dim=0).reshape(3, 1, 1)
        return (v * image).sum(1, keepdim=True) * v

    def measure(self, image: Tensor) -> Tensor:
        """The part of each pixel that lies along v."""
        if image.shape[1] != 3:
            raise ValueError(f"colorization needs images of 3 channels (RGB); these have {image.shape[1]}")
        return self._brightness(image)

    def replace(self, y: Tensor, x: Tensor) -> Tensor:
        """x with the brightness of y."""
        return x + self._brightness(y - x)

    def grey(self, y: Tensor) -> Tensor:
        """The grey image, shape of y: the brightness in all three channels."""
        weights = y.new_tensor(self.weights).reshape(3, 1, 1)
        return ((weights * y).sum(1, keepdim=True) / weights.sum()).expand_as(y)


class SuperResolution:
    """y = the mean of each patch, at each of its pixels,   replace(y, x) = y + x - measure(x).

    Args:
        patch: side of a patch, at least 1; the paper's is 8, from 32x32 to 256x256.

    Raises:
        ValueError: patch is below 1; in `measure`, it does not divide the images.
    """

    def __init__(self, patch: int = 8) -> None:
        if patch < 1:
            raise ValueError(f"patch must be at least 1; got {patch}")
        self.patch = patch

    def measure(self, image: Tensor) -> Tensor:
        """Means of patches, shape of image."""
        if image.shape[-2] % self.patch or image.shape[-1] % self.patch:
            raise ValueError(f"a patch that divides {image.shape[-2]}x{image.shape[-1]} pixels; got {self.patch}")
        means = F.avg_pool2d(image, self.patch)
        return means.repeat_interleave(self.patch, -2).repeat_interleave(self.patch, -1)

    def replace(self, y: Tensor, x: Tensor) -> Tensor:
        """x with the means of y."""
        return y + (x - self.measure(x))


class Unconstrained:
    """y = image,   replace(y, x) = x:  the image is the start, and no part of it is kept (A = I, Ω = 1).

    With levels 5.38 and 2.24 this is the paper's stroke-guided generation (SDEdit, arXiv 2108.01073). From a noisy
    image at its own level, this is denoising.
    """

    def measure(self, image: Tensor) -> Tensor:
        """The image."""
        return image

    def replace(self, y: Tensor, x: Tensor) -> Tensor:
        """x."""
        return x


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """sin((1-α)ψ)/sin ψ · a + sin(αψ)/sin ψ · b,   ψ = arccos(aᵀb/(‖a‖‖b‖)),   α = share.

    The interpolated vectors have the norm of noise.  (arXiv 2303.01469, App. D.)  a, b: one image each, of
    the same shape.

    Raises:
        ValueError: a and b are opposite, or one is 0: the arc is not unique.
    """
    u, w = (F.normalize(each.double().flatten(), dim=0) for each in (a, b))
    psi = 2 * torch.atan2((u - w).norm(), (u + w).norm()).item()  # arccos, without its rounding at 0 and π
    if not (u.any() and w.any() and psi < math.pi * (1 - 1e-6)):
        raise ValueError("slerp needs two vectors that are not 0 and not opposite")
    if psi < 1e-6:
        return (1 - share) * a + share * b
    return (math.sin((1 - share) * psi) * a + math.sin(share * psi) * b) / math.sin(psi)


def estimate_sigma(image: Tensor) -> float:
    """The standard deviation of white noise in an image (C, H, W): median |d| / 0.6745 of the finest diagonal details.

    d = (x_00 - x_01 - x_10 + x_11)/2 over blocks of 2x2 (Haar) has the deviation of the noise, and is nearly 0 where
    the image is smooth. For an image of few pixels, which is not smooth, the estimate is an upper bound.  (Donoho &
    Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81.)

    Raises:
        ValueError: the image has no 2x2 pixels.
    """
    if image.ndim != 3 or min(image.shape[-2:]) < 2:
        raise ValueError(f"image must be of shape (C, H, W) with H and W at least 2; got {tuple(image.shape)}")
    height, width = (size // 2 * 2 for size in image.shape[-2:])
    x = image[..., :height, :width]
    details = (x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 2
    return details.abs().median().item() / 0.6745
