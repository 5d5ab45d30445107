"""The denoiser, or consistency function, of a raw network and its preconditioning."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from consistency_models.conditions import Prompt
from consistency_models.noise.schedules import per_image

__all__ = ["Preconditioned"]


class Preconditioned(nn.Module):
    """D(x, σ) = c_skip(σ)·x + c_out(σ)·F(c_in(σ)·x, c_noise(σ)): the denoiser, or the consistency function.

    With a network of two times, D(x, σ, s) is the two-time denoiser: the step from x at level σ to level s ends at
    D + s/σ·(x - D). Without `end`, s = σ, which is the denoiser of level σ.

    The scalings are computed in float32, or in float64 if x is float64. The network runs under the active autocast, or
    under autocast to the dtype of the attribute `autocast`, if that is set. Autocast does not change the dtype of the
    elementwise operations around the network.

    Args:
        network: F(x, c_noise, labels, augment) -> shape of x; c_noise has shape (B,). A network whose attribute
            `two_times` is true takes c_end as a fifth argument. `forward` uses the first channels, as many as x has.
        preconditioning: the four scalings, and `c_end` for a network of two times.
    """

    def __init__(self, network: nn.Module, preconditioning: Any) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.two_times: bool = getattr(network, "two_times", False)
        self.autocast: torch.dtype | None = None

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | Prompt | None = None,
        augment: Tensor | None = None,
        end: Tensor | float | None = None,
    ) -> Tensor:
        """D(x, σ), or D(x, σ, s); shape and dtype of x.

        Args:
            x: images with noise of standard deviation σ, shape (B, ...).
            sigma: shape (B,), or one level for all.
            labels: the condition of the network: one-hot, shape (B, classes), a `Prompt`, or None.
            augment: augmentation labels, shape (B, ...), or None.
            end: s of a network of two times, shape (B,), or one level for all; σ by default.

        Raises:
            TypeError: an end for a network of one time.
            ValueError: the network returns another shape.
        """
        sigma = self._levels(sigma, x)
        F = self.raw(x, sigma, labels, augment, end)[:, : x.shape[1]]
        if F.shape != x.shape:
            raise ValueError(f"{type(self.network).__name__} must return {tuple(x.shape)}; got {tuple(F.shape)}")
        c_skip, c_out = (per_image(c(sigma), x) for c in (self.preconditioning.c_skip, self.preconditioning.c_out))
        return (c_skip * x + c_out * F.to(x.dtype)).to(x.dtype)

    def raw(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | Prompt | None = None,
        augment: Tensor | None = None,
        end: Tensor | float | None = None,
        negate: bool = False,
    ) -> Tensor:
        """F(c_in(σ)·x, c_noise(σ)), all channels of the network's output; arguments and errors as `forward`.

        With `negate` the network is called with -c_noise(σ), which no level has.
        """
        sigma = self._levels(sigma, x)
        c_in = per_image(self.preconditioning.c_in(sigma), x)
        c_noise = self.preconditioning.c_noise(sigma)
        arguments: tuple[Any, ...] = ((c_in * x).to(x.dtype), -c_noise if negate else c_noise, labels, augment)
        if self.two_times:
            end = sigma if end is None else self._levels(end, x)
            arguments = (*arguments, self.preconditioning.c_end(sigma, end))
        elif end is not None:
            raise TypeError(f"{type(self.network).__name__} has one time: it takes no end")
        with nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast):
            return self.network(*arguments)

    @staticmethod
    def _levels(sigma: Tensor | float, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        sigma = sigma.to(dtype) if isinstance(sigma, Tensor) else x.new_full((), sigma, dtype=dtype)
        return sigma.expand(len(x))
