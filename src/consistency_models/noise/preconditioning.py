"""Preconditionings: the scalings of the raw network F in `Preconditioned`.

    D(x, σ) = c_skip(σ)·x + c_out(σ)·F(c_in(σ)·x, c_noise(σ))

A preconditioning is any object with these four methods. Each maps levels σ to a tensor of the same shape and floating
dtype. A network of two times also takes `c_end(σ, s)`, the label of the level s at which the step from σ ends.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from consistency_models.trust import loadable
from consistency_models.values import Infinite, Positive, Share, SigmaOrZero, checked

__all__ = ["EDM", "IDDPM", "VE", "VP", "Boundary", "Flow", "TrigFlow"]


@loadable()
class EDM:
    """c_skip = σ_d²/(σ² + σ_d²),  c_out = σ·σ_d/√(σ² + σ_d²),  c_in = 1/√(σ² + σ_d²),  c_noise = ¼·ln σ.

    (EDM, arXiv 2206.00364, Table 1.)

    Args:
        sigma_data: σ_d, the standard deviation of the data.
    """

    predicts = "EDM's F, up to its sign"

    @checked
    def __init__(self, sigma_data: Positive = 0.5) -> None:
        self.sigma_data = sigma_data

    def c_skip(self, sigma: Tensor) -> Tensor:
        """σ_d²/(σ² + σ_d²)."""
        return 1 / (1 + (sigma / self.sigma_data) ** 2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """σ·σ_d/√(σ² + σ_d²)."""
        return sigma * self.sigma_data * self.c_in(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/√(σ² + σ_d²)."""
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """¼·ln σ."""
        return sigma.log() / 4

    def c_end(self, sigma: Tensor, end: Tensor) -> Tensor:
        """¼·ln max(s, 0.002), which is finite for s = 0."""
        return self.c_noise(end.clamp(min=0.002))


@loadable()
class TrigFlow(EDM):
    """EDM's scalings with the sign and the time of TrigFlow.

    a = arctan(σ/σ_d):  c_skip = cos²a,  c_out = -σ_d·sin a,  c_in = cos a/σ_d,  c_noise = a.
    (sCM, arXiv 2410.11081, Eq. 5 to 7.)

    Args:
        sigma_data: σ_d, the standard deviation of the data.
    """

    def c_out(self, sigma: Tensor) -> Tensor:
        """-σ_d·sin a."""
        return -super().c_out(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """a = arctan(σ/σ_d)."""
        return (sigma / self.sigma_data).atan()

    def c_end(self, sigma: Tensor, end: Tensor) -> Tensor:
        """arctan(s/σ_d)."""
        return self.c_noise(end)


@loadable()
class Flow:
    """The network predicts the velocity of flow matching.

    t = σ/(1 + σ),  z = x/(1 + σ),  D = z - t·F:  c_skip = c_in = 1/(1 + σ),  c_out = -σ/(1 + σ),  c_noise = t.
    (Rectified flow, arXiv 2209.03003; MeanFlow, arXiv 2505.13447, Sec. 3.)

    Args:
        gap: second label of a network of two times: True: t - r, as in MeanFlow; False: r, the time of the level s.
    """

    predicts = "a velocity"

    @checked
    def __init__(self, gap: bool = True) -> None:
        self.gap = gap

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ)."""
        return 1 / (1 + sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """-σ/(1 + σ)."""
        return -sigma / (1 + sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ)."""
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """t = σ/(1 + σ)."""
        return sigma / (1 + sigma)

    def c_end(self, sigma: Tensor, end: Tensor) -> Tensor:
        """t - r, or r."""
        return self.c_noise(sigma) - self.c_noise(end) if self.gap else self.c_noise(end)


@loadable()
class Boundary(EDM):
    """EDM's scalings, shifted so that D(x, σ_min) = x exactly, as a consistency function requires.

    c_skip = σ_d²/((σ - σ_min)² + σ_d²),  c_out = σ_d·(σ - σ_min)/√(σ² + σ_d²); c_in and c_noise as in EDM.
    (Consistency Models, arXiv 2303.01469, App. C.)

    Args:
        sigma_data: σ_d, the standard deviation of the data.
        sigma_min: the smallest level, at which the consistency function is the identity.
    """

    predicts = "F that is 0 at sigma_min"
    identity_at_sigma_min = True

    @checked
    def __init__(self, sigma_data: Positive = 0.5, sigma_min: SigmaOrZero = 0.002) -> None:
        super().__init__(sigma_data)
        self.sigma_min = sigma_min

    def c_skip(self, sigma: Tensor) -> Tensor:
        """σ_d²/((σ - σ_min)² + σ_d²)."""
        return super().c_skip(sigma - self.sigma_min)

    def c_out(self, sigma: Tensor) -> Tensor:
        """σ_d·(σ - σ_min)/√(σ² + σ_d²)."""
        return (sigma - self.sigma_min) * self.sigma_data * self.c_in(sigma)


class _NoisePrediction:
    """c_skip = 1,  c_out = -σ,  c_in = 1/√(σ² + 1): networks that predict the noise. A subclass defines c_noise."""

    predicts = "noise"

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """-σ."""
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/√(σ² + 1)."""
        return (sigma**2 + 1).rsqrt()


@loadable()
class VP(_NoisePrediction):
    """c_skip = 1,  c_out = -σ,  c_in = 1/√(σ² + 1),  c_noise = (M - 1)·t(σ): networks of the VP process, DDPM++.

    σ(t) = √(e^(½·β_d·t² + β_min·t) - 1), t in [ε, 1], and t(σ) its inverse.  (EDM, arXiv 2206.00364, Table 1.)

    Args:
        beta_d: β_d, the growth of the rate of noise.
        beta_min: β_min, the rate of noise at t = 0.
        steps: M, the number of noise levels.
        epsilon: ε, the smallest time of training.
    """

    @checked
    def __init__(
        self,
        beta_d: Positive = 19.9,
        beta_min: Positive = 0.1,
        steps: Annotated[int, Ge(2), Le(10_000)] = 1000,
        epsilon: Annotated[float, Gt(0), Lt(1)] = 1e-5,
    ) -> None:
        self.beta_d, self.beta_min, self.steps, self.epsilon = beta_d, beta_min, steps, epsilon
        self.sigma_min, self.sigma_max = self.sigma(torch.tensor([epsilon, 1.0], dtype=torch.float64)).tolist()

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), any shape."""
        return (self.beta_d / 2 * t**2 + self.beta_min * t).expm1().sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """t(σ), any shape."""
        return ((self.beta_min**2 + 2 * self.beta_d * (sigma**2).log1p()).sqrt() - self.beta_min) / self.beta_d

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(M - 1)·t(σ)."""
        return (self.steps - 1) * self.time(sigma)


@loadable()
class VE(_NoisePrediction):
    """c_skip = 1,  c_out = σ,  c_in = 1,  c_noise = ln ½σ: networks of the VE process, NCSN++.

    (EDM, arXiv 2206.00364, Table 1.)

    Args:
        sigma_min: the smallest level of training.
        sigma_max: the largest level of training.
    """

    @checked
    def __init__(self, sigma_min: SigmaOrZero = 0.02, sigma_max: Annotated[Positive, Infinite] = 100.0) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def c_out(self, sigma: Tensor) -> Tensor:
        """σ."""
        return sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln ½σ."""
        return (sigma / 2).log()


def iddpm_table(c_1: float, c_2: float, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """u_j of `IDDPM`, descending, shape (steps + 1,).

    ᾱ is computed in float32, as published: its rounding changes a level by up to 5e-4, and published models were
    trained at these levels.
    """
    alpha_bar = (torch.arange(steps + 1) * (math.pi / 2) / steps / (c_2 + 1)).sin() ** 2
    u = torch.zeros(steps + 1, dtype=dtype)
    for j in range(steps, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (alpha_bar[j - 1] / alpha_bar[j]).clamp(min=c_1) - 1).sqrt()
    return u


@loadable()
class IDDPM(_NoisePrediction):
    """c_skip = 1,  c_out = -σ,  c_in = 1/√(σ² + 1),  c_noise = M - 1 - argmin_j |u_j - σ|: networks of improved DDPM.

    u_M = 0,  u_{j-1} = √((u_j² + 1)/max(ᾱ_{j-1}/ᾱ_j, C_1) - 1),  ᾱ_j = sin²(½π·j/(M·(C_2 + 1))).
    (Improved DDPM, arXiv 2102.09672, in the form of EDM, arXiv 2206.00364, Table 1.)

    Args:
        c_1: C_1, lower bound of ᾱ_{j-1}/ᾱ_j.
        c_2: C_2, offset of the cosine schedule.
        steps: M, the number of noise levels.
    """

    @checked
    def __init__(
        self, c_1: Share = 0.001, c_2: Positive = 0.008, steps: Annotated[int, Ge(2), Le(10_000)] = 1000
    ) -> None:
        u = iddpm_table(c_1, c_2, steps)
        self.levels, self.steps = u, steps
        self.sigma_min, self.sigma_max = u[steps - 1].item(), u[0].item()

    def index(self, sigma: Tensor) -> Tensor:
        """argmin_j |u_j - σ|, any shape."""
        return (sigma[..., None] - self.levels.to(sigma.device, non_blocking=True)).abs().argmin(-1)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """M - 1 - argmin_j |u_j - σ|."""
        return (self.steps - 1 - self.index(sigma)).to(sigma.dtype)
