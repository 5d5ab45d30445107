"""The preconditionings of older diffusion models, as EDM restates them (arXiv 2206.00364, Table 1).

Each maps levels σ of any shape and floating dtype to the same, as `consistency_models.preconditioning` has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["IDDPM", "VE", "VP"]


class VP:
    """c_skip = 1,  c_out = -σ,  c_in = 1/√(σ² + 1),  c_noise = (M - 1)·t  where  σ² + 1 = exp(½β_d·t² + β_min·t).

    (Score-based generative modelling, arXiv 2011.13456.)

    Args:
        beta_d: growth of the rate of noise over time.
        beta_min: rate of noise at time 0.
        M: number of steps that the network was trained for.
    """

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000) -> None:
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """-σ."""
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/√(σ² + 1)."""
        return (sigma**2 + 1).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(M - 1)·(√(β_min² + 2β_d·ln(1 + σ²)) - β_min)/β_d."""
        root = (self.beta_min**2 + 2 * self.beta_d * (sigma**2).log1p()).sqrt()
        return (self.M - 1) * (root - self.beta_min) / self.beta_d


class VE:
    """c_skip = 1,  c_out = σ,  c_in = 1,  c_noise = ln(σ/2).  (Score-based generative modelling, arXiv 2011.13456.)"""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """σ."""
        return sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(σ/2)."""
        return (sigma / 2).log()


class IDDPM(VP):
    """c_skip, c_out and c_in as VP's,  c_noise = M - 1 - argmin_j |u_j - σ|.  (Improved DDPM, arXiv 2102.09672.)

    Args:
        u: the levels that the network was trained for, descending to u_M = 0, shape (M + 1,).
    """

    def __init__(self, u: Tensor) -> None:
        super().__init__(M=len(u) - 1)
        self.u = u

    def c_noise(self, sigma: Tensor) -> Tensor:
        """M - 1 - argmin_j |u_j - σ|: the number of the step whose level is nearest, noisiest first."""
        nearest = (self.u.to(sigma) - sigma[..., None]).abs().argmin(-1)
        return (self.M - 1 - nearest).to(sigma.dtype)
