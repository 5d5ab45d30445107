"""Derivatives by central differences, in place of forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from consistency_models.noise.schedules import per_image

__all__ = ["central_difference"]


def central_difference(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor], h: float
) -> tuple[Tensor, Tensor]:
    """½(f(p + δ·ṗ) + f(p - δ·ṗ)) and (f(p + δ·ṗ) - f(p - δ·ṗ))/2δ: value and derivative of f, with errors O(h²).

    Each row has its own δ = h·t/|ṫ|, which moves its level t by the share h. Sums and differences are computed in
    float64, on MPS in float32; f is called in the dtype of the primals.

    Args:
        function: f.
        primals, tangents: p and ṗ, tensors of equal shapes; the last are the level t (B,) and its rate ṫ (B,).
        h: share of the level. In float32 the rounding error of the derivative is about 1e-7/h of the value of f.
    """
    dtype = primals[-1].dtype
    wide = torch.float32 if primals[-1].device.type == "mps" else torch.float64  # MPS has no float64
    delta = h * primals[-1].to(wide) / tangents[-1].to(wide).abs()
    up, down = (
        function(*((p + sign * per_image(delta, p) * rate).to(dtype) for p, rate in zip(primals, tangents))).to(wide)
        for sign in (1, -1)
    )
    return ((up + down) / 2).to(dtype), ((up - down) / per_image(2 * delta, up)).to(dtype)
