"""Samplers: from standard normal noise to images, by a consistency function or along the probability-flow ODE.

    sampler(denoiser, noise, randn) -> images

`denoiser(x, sigma)` takes σ of shape (B,), and of a model of two times also `end`, the level where the step ends;
`noise` and what `randn()` returns are standard normal, shape (B, ...). The state has the dtype of `noise`. `sigmas` are
the levels, descending, from which a step starts; `nfe` counts the denoiser calls. With `clip`, each output
of the denoiser and the images are clamped to [-1, 1]. Facts of a class, true where they are written:

    of_consistency_models    one call gives the end of a trajectory: a model with this sampler is a consistency model
    one_time                 `end` is not handed to the denoiser: not for models of two times
    needs_two_times          `end` is handed to the denoiser: only for models of two times

    sampler.descend(denoiser, x, sigma) -> images

starts from images x of any level and adds no noise. Its result is compared with the solution of the probability-flow
ODE. `Ancestral`, which needs the noise, and `GeneralODESampler`, which starts at its first level, have no such method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from consistency_models.noise.schedules import karras_grid
from consistency_models.noise.segments import Spacing, segment_edges
from consistency_models.sampling import solvers
from consistency_models.sampling.churn import Churn
from consistency_models.sampling.solvers import Denoiser
from consistency_models.trust import loadable
from consistency_models.values import Descending, Infinite, NotNegative, Rho, Share, Sigma, SigmaOrZero, Size, checked

__all__ = ["DPM2", "Ancestral", "Consistency", "Euler", "FlowMapSampler", "Heun", "SegmentSampler", "ancestral_step"]


def _clipped(denoiser: Denoiser) -> Denoiser:
    return lambda x, sigma: denoiser(x, sigma).clamp(-1, 1)


def _with_inputs(denoiser: Callable[..., Tensor], inputs: Sequence[float] | None) -> Callable[..., Tensor]:
    """The denoiser, given these inputs of its network for each image."""
    if inputs is None:
        return denoiser
    return lambda x, sigma, **given: denoiser(x, sigma, augment=x.new_tensor(inputs).expand(len(x), -1), **given)


@loadable()
class Consistency:
    """x ← f(x, σ_1); then for every further level, x ← f(x + √(σ_i² - σ_min²)·z, σ_i): one step, or a few.

    (Consistency Models, arXiv 2303.01469, Alg. 1.)

    Args:
        sigmas: σ_1 > σ_2 > …, the levels at which f is called; the first is the standard deviation of the start.
        sigma_min: level of the output of f: 0.002 with the boundary preconditioning, 0 for ECT's models.
        clip: clamp the output of f to [-1, 1].
        end: level of the images; by default `sigma_min`, and no noise is added after the last call.
        unit_variance: start at √(1 + σ_1²)·noise instead of σ_1·noise, as the pipelines of diffusers do.
        inputs: additional inputs of the network, the same for all images, such as the scale of guidance of sCD; None:
            zeros.

    Raises:
        ValueError: not sigma_min <= end < the last of sigmas.
    """

    of_consistency_models = one_time = True

    @checked
    def __init__(
        self,
        sigmas: Descending = (80.0,),
        sigma_min: SigmaOrZero = 0.002,
        clip: bool = False,
        end: SigmaOrZero | None = None,
        unit_variance: bool = False,
        inputs: Annotated[Sequence[float], MinLen(1)] | None = None,
    ) -> None:
        sigmas, end = tuple(map(float, sigmas)), sigma_min if end is None else end
        if not 0 <= sigma_min <= end < sigmas[-1]:
            raise ValueError(
                f"need 0 <= sigma_min <= end < sigmas; got sigma_min {sigma_min}, end {end}, sigmas {sigmas}"
            )
        self.sigmas, self.sigma_min, self.clip, self.end = sigmas, sigma_min, clip, end
        self.nfe, self.unit_variance, self.inputs = len(sigmas), unit_variance, inputs

    @classmethod
    @loadable()
    @checked
    def for_steps(
        cls,
        steps: Size,
        sigma_mid: Sigma = 0.821,
        sigma_min: SigmaOrZero = 0.002,
        sigma_max: Sigma = 80.0,
        rho: Rho = 7.0,
        clip: bool = False,
        inputs: Annotated[Sequence[float], MinLen(1)] | None = None,
    ) -> Consistency:
        """One step from σ_max; two, σ_max and `sigma_mid`; more, a Karras grid between the two (our choice).

        Args:
            steps: number of calls, at least 1.
            sigma_mid: the second level of two: 0.821 on CIFAR-10, 1.526 on ImageNet-64 (iCT's and ECT's code).
            sigma_min, clip, inputs: as for the class.
            sigma_max, rho: highest level and exponent of the Karras grid.

        Raises:
            ValueError: sigma_mid is not between sigma_min and sigma_max.
        """
        if not sigma_min < sigma_mid < sigma_max:
            raise ValueError(
                f"need sigma_min < sigma_mid < sigma_max; got sigma_mid {sigma_mid}, "
                f"sigma_min {sigma_min}, sigma_max {sigma_max}"
            )
        return cls(karras_grid(steps, sigma_mid, sigma_max, rho).flip(0).tolist(), sigma_min, clip, inputs=inputs)

    @classmethod
    @loadable()
    def from_indices(
        cls,
        ts: Sequence[int],
        steps: int,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        clip: bool = False,
    ) -> Consistency:
        """What the official code calls `ts`: indices from 0 (σ_max) to steps - 1 (σ_min) of a Karras grid.

        There are len(ts) - 1 calls. The last index is the level of the images; it is steps - 1 (no noise) in every
        published use.

        Raises:
            ValueError: fewer than two ts, ts not ascending, or outside 0 … steps - 1.
        """
        if len(ts) < 2 or not all(a < b for a, b in pairwise(ts)) or ts[0] < 0 or ts[-1] >= steps:
            raise ValueError(
                f"ts must be two or more ascending indices from 0 to steps - 1; got ts {ts}, steps {steps}"
            )
        *sigmas, end = karras_grid(steps, sigma_min, sigma_max, rho).flip(0)[list(ts)].tolist()
        return cls(sigmas, sigma_min, clip, end)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Images, shape of noise."""
        f = self._function(denoiser)
        x = noise * (math.sqrt(1 + self.sigmas[0] ** 2) if self.unit_variance else self.sigmas[0])
        for sigma, following in pairwise((*self.sigmas, self.end)):
            x = f(x, x.new_full((len(x),), sigma))
            if following > self.sigma_min:
                x = x + math.sqrt(following**2 - self.sigma_min**2) * randn()
        return x.clamp(-1, 1) if self.clip else x

    @torch.no_grad()
    def descend(self, denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """f(x, sigma), shape of x."""
        return self._function(denoiser)(x, x.new_full((len(x),), sigma))

    def with_levels(self, sigmas: Sequence[float]) -> Consistency:
        """This sampler with other levels σ_1 > σ_2 > …"""
        return Consistency(sigmas, self.sigma_min, self.clip, unit_variance=self.unit_variance, inputs=self.inputs)

    def _function(self, denoiser: Denoiser) -> Denoiser:
        f = _with_inputs(denoiser, self.inputs)
        return _clipped(f) if self.clip else f


@loadable()
class SegmentSampler:
    """x ← x̂ + (σ_{j-1}/σ_j)·(x - x̂),  x̂ = f(x, σ_j),  j = S … 1: from segment end to segment end, to σ_0 = 0.

    Deterministic; the sampler of multistep consistency models, whose f leads to the end of a segment.
    (arXiv 2403.06807, Algorithm 2.)

    Args:
        steps: S.
        segments: number of segments of the model, which must equal `steps`; None: not checked.
        spacing: distribution of the ends between 0 and σ_max: `karras_grid`, the default, or `segments.cosine_grid`.
        clip: clamp the output of f to [-1, 1].

    Raises:
        ValueError: steps is not the number of the model's segments.
    """

    one_time = True

    @checked
    def __init__(
        self, steps: Size = 1, segments: Size | None = None, spacing: Spacing | None = None, clip: bool = False
    ) -> None:
        if segments is not None and steps != segments:
            raise ValueError(f"a model of {segments} segments is sampled in {segments} steps; got steps={steps}")
        self.sigmas = tuple(segment_edges(steps, spacing or karras_grid).flip(0)[:-1].tolist())
        self.nfe, self.clip = steps, clip

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Images, shape of noise."""
        return self.descend(denoiser, noise * self.sigmas[0], self.sigmas[0])

    @torch.no_grad()
    def descend(self, denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """Images, shape of x, from images at any level sigma: through the ends that lie below it."""
        f = _clipped(denoiser) if self.clip else denoiser
        for high, low in pairwise((sigma, *(end for end in self.sigmas if end < sigma), 0.0)):
            denoised = f(x, x.new_full((len(x),), high))
            x = denoised + low / high * (x - denoised)
        return x


@loadable()
class FlowMapSampler:
    """x ← D + s/σ·(x - D),  D = D(x, σ, s): from level to level by a model of two times, in one call each.

    With gamma > 0 a jump ends at s·√(1 - γ²), and noise of standard deviation γ·s follows; γ = 1 is the sampler of
    consistency models.  (MeanFlow, arXiv 2505.13447, Sec. 4.3; AYF, arXiv 2506.14603, Sec. 3.4.)

    Args:
        steps: number of calls, at levels that are equidistant in the time t = σ/(1 + σ), down to 0; None: 1, or the
            number of `sigmas`.
        sigma_max: σ_1, the standard deviation of the start.
        sigmas: the levels at which the model is called, descending, in place of these levels.
        gamma: γ in [0, 1].
        clip: clamp D to [-1, 1].
        inputs: additional inputs of the network, the same for all images, such as the scale of guidance of improved
            MeanFlow; None: zeros.

    Raises:
        ValueError: steps is not the number of sigmas.
    """

    needs_two_times = True

    @checked
    def __init__(
        self,
        steps: Size | None = None,
        sigma_max: Sigma = 80.0,
        sigmas: Descending | None = None,
        gamma: Share = 0.0,
        clip: bool = False,
        inputs: Annotated[Sequence[float], MinLen(1)] | None = None,
    ) -> None:
        if sigmas is not None and steps not in (None, len(sigmas)):
            raise ValueError(f"steps must be {len(sigmas)}, the number of sigmas; got {steps}")
        if sigmas is None:
            steps = steps or 1
            times = (sigma_max / (1 + sigma_max) * (1 - i / steps) for i in range(1, steps))
            sigmas = (sigma_max, *(t / (1 - t) for t in times))
        self.sigmas, self.gamma, self.clip = tuple(map(float, sigmas)), gamma, clip
        self.nfe, self.inputs = len(self.sigmas), inputs

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Images, shape of noise."""
        x = noise * self.sigmas[0]
        for high, low in pairwise((*self.sigmas, 0.0)):
            x = self._jump(denoiser, x, high, low * math.sqrt(1 - self.gamma**2))
            if low > 0 and self.gamma > 0:
                x = x + low * self.gamma * randn()
        return x.clamp(-1, 1) if self.clip else x

    @torch.no_grad()
    def descend(self, denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """Images, shape of x, from images at any level sigma: along the levels below it, without noise."""
        for high, low in pairwise((sigma, *(level for level in self.sigmas if level < sigma), 0.0)):
            x = self._jump(denoiser, x, high, low)
        return x.clamp(-1, 1) if self.clip else x

    def with_levels(self, sigmas: Sequence[float]) -> FlowMapSampler:
        """This sampler with other levels σ_1 > σ_2 > …"""
        return FlowMapSampler(sigmas=sigmas, gamma=self.gamma, clip=self.clip, inputs=self.inputs)

    def _jump(self, denoiser: Callable[..., Tensor], x: Tensor, high: float, low: float) -> Tensor:
        f = _with_inputs(denoiser, self.inputs)
        denoised = f(x, x.new_full((len(x),), high), end=x.new_full((len(x),), low))
        denoised = denoised.clamp(-1, 1) if self.clip else denoised
        return denoised + low / high * (x - denoised)


class _ODE:
    """Solve dx/dσ = (x - D(x, σ))/σ from σ_max to 0 on a Karras grid, with optional churn: see `Heun`."""

    solver: solvers.Euler | solvers.Heun | solvers.DPM2

    @checked
    def __init__(
        self,
        steps: Size = 18,
        sigma_min: Sigma = 0.002,
        sigma_max: Sigma = 80.0,
        rho: Rho = 7.0,
        churn: NotNegative = 0.0,
        churn_min: NotNegative = 0.0,
        churn_max: Annotated[float, Ge(0), Infinite] = math.inf,
        churn_noise: NotNegative = 1.0,
        clip: bool = False,
    ) -> None:
        self.sigmas = tuple(karras_grid(steps, sigma_min, sigma_max, rho).flip(0).tolist())
        self.churn, self.clip = Churn(steps, churn, churn_min, churn_max, churn_noise), clip

    @property
    def nfe(self) -> int:
        """Denoiser calls an image."""
        return self.solver.calls * (len(self.sigmas) - 1) + self.solver.calls_to_zero

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Images, shape of noise."""
        D = _clipped(denoiser) if self.clip else denoiser
        x = noise * self.sigmas[0]
        for high, low in pairwise((*self.sigmas, 0.0)):
            if self.churn.gamma > 0:
                high, std = self.churn(high)
                x = x + std * randn()  # drawn in every step, so that later draws do not depend on the window
            x = self.solver(D, x, high, low)
        return x.clamp(-1, 1) if self.clip else x

    @torch.no_grad()
    def descend(self, denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """Images, shape of x, from images at any level sigma: along the levels of the grid below it, without churn."""
        D = _clipped(denoiser) if self.clip else denoiser
        for high, low in pairwise((sigma, *(level for level in self.sigmas if level < sigma), 0.0)):
            x = self.solver(D, x, high, low)
        return x.clamp(-1, 1) if self.clip else x


@loadable()
class Euler(_ODE):
    """The probability-flow ODE by Euler's steps, which are DDIM's: `steps` calls.

    Args and errors as `Heun`.
    """

    solver = solvers.Euler()


@loadable()
class Heun(_ODE):
    """The probability-flow ODE by Heun's steps and a last one of Euler to 0: 2·steps - 1 calls.

    With churn, each step from σ in [churn_min, churn_max] first goes back to σ̂ = σ + γσ, γ = min(churn/steps, √2 - 1),
    by x + √(σ̂² - σ²)·churn_noise·z.  (EDM, arXiv 2206.00364, Alg. 1 and 2.)

    Args:
        steps: levels of the Karras grid; 0 comes after them.
        sigma_min, sigma_max, rho: lowest and highest level and exponent of the Karras grid.
        churn, churn_min, churn_max, churn_noise: EDM's S_churn, S_min, S_max, S_noise; churn 0 is deterministic.
        clip: clamp the output of the denoiser to [-1, 1].

    Raises:
        ValueError: steps < 1, a range as in `karras_grid`, or an option of the churn is out of range.
    """

    solver = solvers.Heun()


@loadable()
class DPM2(_ODE):
    """The probability-flow ODE by the midpoint rule: 2·steps calls.

    Args and errors as `Heun`.
    """

    solver = solvers.DPM2()


def ancestral_step(high: float, low: float) -> tuple[float, float]:
    """(σ_down, σ_up) with σ_down² + σ_up² = low²: go down to σ_down, then add noise σ_up.

    σ_up = low·√(1 - low²/high²), σ_down = low²/high: the noise of DDPM's posterior.  (DDPM, arXiv 2006.11239, Eq. 7.)
    """
    return low**2 / high, low * math.sqrt(1 - (low / high) ** 2)


@loadable()
class Ancestral:
    """Euler's steps down to σ_down, then noise σ_up, with levels of `ancestral_step`: `steps` calls.

    Args:
        steps: levels of the Karras grid; 0 comes after them.
        sigma_min, sigma_max, rho: lowest and highest level and exponent of the Karras grid.
        clip: clamp the output of the denoiser to [-1, 1].

    Raises:
        ValueError: steps < 1, or a range as in `karras_grid`.
    """

    @checked
    def __init__(
        self,
        steps: Size = 18,
        sigma_min: Sigma = 0.002,
        sigma_max: Sigma = 80.0,
        rho: Rho = 7.0,
        clip: bool = False,
    ) -> None:
        self.sigmas = tuple(karras_grid(steps, sigma_min, sigma_max, rho).flip(0).tolist())
        self.nfe, self.clip = steps, clip

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        """Images, shape of noise."""
        D, euler = _clipped(denoiser) if self.clip else denoiser, solvers.Euler()
        x = noise * self.sigmas[0]
        for high, low in pairwise((*self.sigmas, 0.0)):
            down, up = ancestral_step(high, low)
            x = euler(D, x, high, down)
            x = x + up * randn() if up > 0 else x
        return x.clamp(-1, 1) if self.clip else x
