"""The error of a consistency model: its distance to the true solution of the probability-flow ODE

    dx/dσ = (x - E[x_0 | x, σ])/σ,        f*(x, σ) = the solution at σ_min of the trajectory through (x, σ)

A solution is a callable `solution(x, sigma, to, labels) -> x` at level `to`, for x of shape (B, ...) at the single
level sigma: the exact solution of a mixture (`consistency_models.data.Mixture.consistency`), or that of a teacher by
`HeunSolution`. Labels are passed unchanged to model and solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from consistency_models.conditions import Prompt
from consistency_models.devices import float64
from consistency_models.noise.schedules import karras_grid
from consistency_models.sampling.solvers import Heun
from consistency_models.storage.cache import cached, source_fingerprint

__all__ = ["HeunSolution", "ODEError", "ODEErrors"]

SIGMAS = tuple(torch.logspace(math.log10(0.02), math.log10(80), 10, dtype=torch.float64).tolist())


class HeunSolution:
    """Solves the ODE of a denoiser by Heun steps on a Karras grid, in float64 outside the denoiser: error ∝ 1/steps².

    Args:
        denoiser: `denoiser(x, sigma, labels)`, sigma of shape (B,); called in the dtype of the input x.
        steps: steps from sigma_max to sigma_min, two calls each; a shorter interval takes its share of the steps.
        sigma_min, sigma_max, rho: parameters of the grid.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        steps: int = 256,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        self.denoiser, self.rho = denoiser, rho
        self.density = steps / (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: float, to: float, labels: Tensor | Prompt | None = None) -> Tensor:
        """Solve the trajectory through (x, sigma) to level `to` <= sigma; returns shape and dtype of x."""
        if to == sigma:
            return x

        def denoiser(state: Tensor, level: Tensor) -> Tensor:
            return float64(self.denoiser(state.to(x.dtype).to(x.device), level.to(x.dtype).to(x.device), labels))

        steps = max(1, round(self.density * (sigma ** (1 / self.rho) - to ** (1 / self.rho))))
        state, solver = float64(x), Heun()
        for low, high in reversed(list(pairwise(karras_grid(steps + 1, to, sigma, self.rho).tolist()))):
            state = solver(denoiser, state, high, low)
        return state.to(x.dtype).to(x.device)


@dataclass(frozen=True)
class ODEErrors:
    """Distances ‖·‖/(√d·σ_data) between a model's outputs f and the true solutions f*.

    Args:
        sigmas: levels, ascending, (L,).
        rms, median: rms and median of f - f* at each level, on noised data, (L,).
        noise_rms, noise_median: rms and median of f - f* from pure noise at the highest level.
        self_consistency: rms of f at level i + 1 minus f at level i, both on one true trajectory that starts in pure
            noise, (L-1,); 0 for any function that is constant on trajectories.
    """

    sigmas: Tensor
    rms: Tensor
    median: Tensor
    noise_rms: float
    noise_median: float
    self_consistency: Tensor

    def summary(self) -> dict[str, float]:
        """Summarise all levels: the root of the mean square of the rms values, and the mean of the medians.

        A few points near the borders between basins of attraction, where f* is steep, dominate the rms. Compare rms and
        median.
        """
        return {
            "ode_error": self.rms.square().mean().sqrt().item(),
            "ode_error_median": self.median.mean().item(),
            "ode_error_noise": self.noise_rms,
            "ode_error_noise_median": self.noise_median,
            "self_consistency": self.self_consistency.square().mean().sqrt().item(),
        }


class ODEError:
    """Measures models against a solution on fixed inputs. The true solutions are computed once.

    Args:
        solution: `solution(x, sigma, to, labels) -> x`, see the module.
        images: clean data (n, ...), on the device and in the dtype of the model's inputs.
        labels: (n, ...) for class-conditional models, a `Prompt` of n rows, or None.
        sigma_data: unit of the distances.
        sigmas: levels, ascending; by default 10 from 0.02 to 80, evenly spaced in ln σ.
        sigma_min: level of the model's output.
        seed: seed of the noise.
        batch_size: images in one call.
        cache_key: identity of the solution, the key of its disk cache; None disables the cache.

    Raises:
        ValueError: sigma_min and sigmas are not ascending, or there are fewer than two sigmas.
    """

    def __init__(
        self,
        solution: Callable[..., Tensor],
        images: Tensor,
        labels: Tensor | Prompt | None = None,
        sigma_data: float = 0.5,
        sigmas: Sequence[float] = SIGMAS,
        sigma_min: float = 0.002,
        seed: int = 0,
        batch_size: int = 1024,
        cache_key: str | None = None,
    ) -> None:
        if len(sigmas) < 2 or not all(a < b for a, b in pairwise((sigma_min, *sigmas))):
            raise ValueError(f"need sigma_min < sigmas, two or more, ascending; got {sigma_min} and {tuple(sigmas)}")
        self.solution, self.images, self.labels, self.sigma_data = solution, images, labels, sigma_data
        self.sigmas, self.sigma_min, self.seed, self.batch_size = tuple(sigmas), sigma_min, seed, batch_size
        self.cache_key = cache_key

    @cached_property
    def noised(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs (x, f*(x, σ)) of noised data, one for each level."""
        return list(zip(self._inputs, self.solutions["noised"]))

    @property
    def trajectory(self) -> list[Tensor]:
        """The true trajectory from pure noise: x at sigma_min, then x at each level, ascending."""
        return self.solutions["trajectory"]

    @cached_property
    def solutions(self) -> dict[str, list[Tensor]]:
        """True solutions of the noised data and of the pure noise."""
        if self.cache_key is None:
            return self._solved()
        labels = vars(self.labels).values() if isinstance(self.labels, Prompt) else [self.labels]
        inputs = [each if each is None else each.cpu().numpy().tobytes() for each in (self.images, *labels)]
        code = source_fingerprint(ODEError, self.solution)
        key = (self.cache_key, self.sigmas, self.sigma_min, self.seed, self.images.device.type, inputs, code)
        solutions = cached(
            "solutions", key, lambda: {name: [x.cpu() for x in each] for name, each in self._solved().items()}
        )
        return {name: [x.to(self.images) for x in each] for name, each in solutions.items()}

    def _solved(self) -> dict[str, list[Tensor]]:
        noised = [self._solve(x, sigma, self.sigma_min) for x, sigma in zip(self._inputs, self.sigmas)]
        x = self.sigmas[-1] * self._noise(torch.Generator().manual_seed(self.seed + 1))
        trajectory = [x]
        for low, high in reversed(list(pairwise((self.sigma_min, *self.sigmas)))):
            x = self._solve(x, high, low)
            trajectory.append(x)
        return {"noised": noised, "trajectory": trajectory[::-1]}

    @cached_property
    def _inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return [self.images + sigma * self._noise(generator) for sigma in self.sigmas]

    @torch.no_grad()
    def __call__(self, model: Callable[..., Tensor]) -> ODEErrors:
        """Measure the errors of `model(x, sigma, labels)`, sigma of shape (B,)."""
        errors = [self._distance(self._output(model, x, s), truth) for (x, truth), s in zip(self.noised, self.sigmas)]
        end, *points = self.trajectory
        outputs = [self._output(model, x, sigma) for x, sigma in zip(points, self.sigmas)]
        from_noise = self._distance(outputs[-1], end)
        return ODEErrors(
            torch.tensor(self.sigmas, dtype=torch.float64),
            torch.stack([_rms(each) for each in errors]),
            torch.stack([each.median() for each in errors]),
            _rms(from_noise).item(),
            from_noise.median().item(),
            torch.stack([_rms(self._distance(high, low)) for low, high in pairwise(outputs)]),
        )

    def _noise(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.images.shape, generator=generator, dtype=torch.float64).to(self.images)

    def _solve(self, x: Tensor, sigma: float, to: float) -> Tensor:
        return self._batched(lambda x, labels: self.solution(x, sigma, to, labels), x)

    def _output(self, model: Callable[..., Tensor], x: Tensor, sigma: float) -> Tensor:
        return self._batched(lambda x, labels: model(x, x.new_full((len(x),), sigma), labels), x)

    def _batched(self, function: Callable[[Tensor, Tensor | Prompt | None], Tensor], x: Tensor) -> Tensor:
        batches = torch.arange(len(x), device=x.device).split(self.batch_size)
        return torch.cat([function(x[rows], None if self.labels is None else self.labels[rows]) for rows in batches])

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        difference = (float64(x) - float64(y)).flatten(1)
        return (difference.square().mean(1).sqrt() / self.sigma_data).cpu()


def _rms(distances: Tensor) -> Tensor:
    return distances.square().mean().sqrt()
