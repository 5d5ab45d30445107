"""Levels of a table: the discrete diffusion process of diffusers' pipelines, in this suite's coordinates.

    ᾱ_k = Π_{j<=k} (1 - β_j),  k = 0 … T-1        σ_k = √(1/ᾱ_k - 1)
    z = √ᾱ·x + √(1-ᾱ)·n = c_in(σ)·x_σ            x_σ = x + σ·n

z is a sample of diffusers (variance preserving), x_σ one of this suite (variance exploding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from torch import Tensor

from consistency_models.trust import loadable
from consistency_models.values import Positive, checked

__all__ = ["Discrete", "alphas_cumprod"]

Beta = Annotated[float, Gt(0), Lt(1)]
Table = Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | Annotated[Sequence[Beta], MinLen(2), MaxLen(10_000)]
Prediction = Literal["epsilon", "v_prediction", "sample"]
SIGMA_DATA = 0.5  # of LCM's boundary scalings, which do not depend on the data


def _cosine(start: float, end: float, T: int) -> Tensor:
    def f(s: float) -> float:
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - f((k + 1) / T) / f(k / T), 0.999) for k in range(T)], dtype=torch.float32)


BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda start, end, T: torch.linspace(start, end, T, dtype=torch.float32),
    "scaled_linear": lambda start, end, T: torch.linspace(start**0.5, end**0.5, T, dtype=torch.float32) ** 2,
    "squaredcos_cap_v2": _cosine,
}
"""β_k by the names that schedulers have for them; "squaredcos_cap_v2" does not depend on the ends."""


def alphas_cumprod(
    beta_schedule: str | Sequence[float],
    beta_start: float = 0.0001,
    beta_end: float = 0.02,
    num_train_timesteps: int = 1000,
    rescale_betas_zero_snr: bool = False,
) -> Tensor:
    """ᾱ_k, float32, shape (T,), with the operations of diffusers in their order: equal to the last bit.

    In float64 the lowest levels would differ by up to 3e-4, and models were trained at these levels.

    Args:
        beta_schedule: a name of `BETAS`, or the T values of β.
        beta_start, beta_end, num_train_timesteps: of a named schedule.
        rescale_betas_zero_snr: shift and scale √ᾱ so that the last is 0.  (arXiv 2305.08891, Algorithm 1.)
    """
    if isinstance(beta_schedule, str):
        betas = BETAS[beta_schedule](beta_start, beta_end, num_train_timesteps)
    else:
        betas = torch.tensor(list(beta_schedule), dtype=torch.float32)
    if rescale_betas_zero_snr:
        root = torch.cumprod(1.0 - betas, 0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        root = (root - last) * (first / (first - last))
        product = root**2
        betas = 1 - torch.cat([product[:1], product[1:] / product[:-1]])
    return torch.cumprod(1.0 - betas, 0)


Scaling = Callable[[Tensor], Tensor]
SCALINGS: dict[str, tuple[Scaling, Scaling]] = {
    "epsilon": (torch.ones_like, lambda sigma: -sigma),
    "v_prediction": (lambda sigma: 1 / (1 + sigma**2), lambda sigma: -sigma * (sigma**2 + 1).rsqrt()),
    "sample": (torch.zeros_like, torch.ones_like),
}
"""c_skip and c_out of a denoiser, by what its network predicts."""


@loadable()
class Discrete:
    """Scalings of a network that was trained on the levels of a table, with timestep k(σ) as noise label.

        c_in = 1/√(1 + σ²),  c_noise = k(σ)

        epsilon        c_skip = 1             c_out = -σ              (ε-prediction, DDPM)
        v_prediction   c_skip = 1/(1 + σ²)    c_out = -σ/√(1 + σ²)    (v-prediction, arXiv 2202.00512)
        sample         c_skip = 0             c_out = 1

    k(σ) is linear in ln σ between the levels of the table, a whole number within 1e-3 of one, and clamped at both ends.
    With `boundary` τ these are LCM's consistency functions, f(z, 0) = z:

        c_skip = a·c_in + b·c_skip°,  c_out = b·c_out°      ° as above
        a = σ_d²/((τk)² + σ_d²),  b = τk/√((τk)² + σ_d²),  σ_d = ½

    (Latent Consistency Models, arXiv 2310.04378, with the timestep scaling of diffusers' LCMScheduler.)

    Args:
        beta_schedule: name of the table, or its T values of β; None: Stable Diffusion's, scaled_linear.
        beta_start, beta_end: ends of a named table; None: 0.00085 and 0.012.
        num_train_timesteps: T of a named table; None: 1000.
        prediction_type: what the network predicts; None: epsilon.
        boundary: τ, 10 for LCM; None: a denoiser.

    Raises:
        ValueError: a level of the table is 0 or infinite in float32.
    """

    predicts = "what a scheduler's prediction_type names"
    has_table = True

    @checked
    def __init__(
        self,
        beta_schedule: Table | None = None,
        beta_start: Beta | None = None,
        beta_end: Beta | None = None,
        num_train_timesteps: Annotated[int, Ge(2), Le(10_000)] | None = None,
        prediction_type: Prediction | None = None,
        boundary: Positive | None = None,
    ) -> None:
        schedule, ends = beta_schedule or "scaled_linear", (beta_start or 0.00085, beta_end or 0.012)
        self.table = alphas_cumprod(schedule, *ends, num_train_timesteps or 1000)
        self.sigmas = (1 / self.table.double() - 1).sqrt()  # ascending, float64
        self.prediction_type, self.boundary = prediction_type or "epsilon", boundary
        self.sigma_min, self.sigma_max = self.sigmas[0].item(), self.sigmas[-1].item()
        if not 0 < self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(
                f"the levels of the table must be > 0 and finite; they end at {self.sigma_min} and {self.sigma_max}: "
                "the first β is too small, or the last level has no signal (ᾱ = 0)"
            )
        self._elsewhere: dict[torch.device, Tensor] = {}  # copies of the levels, so that a step copies nothing

    def timestep(self, sigma: Tensor) -> Tensor:
        """k(σ), any shape, in the dtype of σ."""
        levels = self._levels(sigma.device)
        log, within = levels.log(), sigma.to(levels.dtype).clamp(self.sigma_min, self.sigma_max)
        below = (torch.searchsorted(levels, within.detach().contiguous(), right=True) - 1).clamp(0, len(levels) - 2)
        k = below + (within.log() - log[below]) / (log[below + 1] - log[below])
        offset = (k.round() - k).detach()  # added, so that the derivative remains
        return (k + torch.where(offset.abs() < 1e-3, offset, 0.0)).to(sigma.dtype)

    def _levels(self, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return self.sigmas
        if device not in self._elsewhere:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
            self._elsewhere[device] = self.sigmas.to(device, dtype)
        return self._elsewhere[device]

    def c_noise(self, sigma: Tensor) -> Tensor:
        """k(σ)."""
        return self.timestep(sigma)

    def c_end(self, sigma: Tensor, end: Tensor) -> Tensor:
        """k of the level at which a step ends."""
        return self.timestep(end)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/√(σ² + 1)."""
        return (sigma**2 + 1).rsqrt()

    def c_skip(self, sigma: Tensor) -> Tensor:
        """c_skip°, or a·c_in + b·c_skip°."""
        plain = SCALINGS[self.prediction_type][0](sigma)
        if self.boundary is None:
            return plain
        t = self.boundary * self.timestep(sigma)
        return SIGMA_DATA**2 / (t**2 + SIGMA_DATA**2) * self.c_in(sigma) + self._b(sigma) * plain

    def c_out(self, sigma: Tensor) -> Tensor:
        """c_out°, or b·c_out°."""
        plain = SCALINGS[self.prediction_type][1](sigma)
        return plain if self.boundary is None else self._b(sigma) * plain

    def _b(self, sigma: Tensor) -> Any:
        t = (self.boundary or 0.0) * self.timestep(sigma)
        return t * (t**2 + SIGMA_DATA**2).rsqrt()
