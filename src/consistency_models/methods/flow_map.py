"""Base class of MeanFlow, α-Flow, AYF, FACM and Shortcut: a network u(z, t, r) predicts the average velocity.

    t = σ/(1 + σ),  z = x/(1 + σ) = (1 - t)·x0 + t·n,  v = dz/dt        the step from t to r ends at z - (t - r)·u

With r = t, u is the velocity of flow matching; with r = 0, z - t·u is the consistency function. The network is called
in the suite's coordinates, with `Preconditioned.raw`.  (MeanFlow, arXiv 2505.13447, Sec. 3 and 4.1.)
"""

from __future__ import annotations

from torch import Tensor

from consistency_models.methods.base import Method, Step
from consistency_models.noise.schedules import Levels, per_image

__all__ = ["FlowMap", "end_of", "gap"]


def end_of(levels: Levels) -> Tensor:
    """The level of r, shape (B,).

    Raises:
        ValueError: the schedule draws no such level.
    """
    if levels.end is None:
        raise ValueError("a model of two times needs a schedule that draws pairs, Levels.end; choose LogNormalPair")
    return levels.end


def gap(levels: Levels) -> Tensor:
    """t - r in the time of flow matching, shape (B,), without cancellation: (σ - σ_r)/((1 + σ)(1 + σ_r))."""
    t, r = levels.high, end_of(levels)
    return (t - r) / ((1 + t) * (1 + r))


class FlowMap(Method):
    """LightningModule whose online output is the average velocity u; a subclass defines `target`, in terms of u.

    Args:
        arguments: as for `Method`; the preconditioning is `Flow`, the network takes two times, the schedule draws
            `Levels.end`.
    """

    needs_network_of = "a velocity"
    needs_two_times = True
    has_target_network = False

    def u(self, step: Step, x: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
        """u(z, t, r) for x at level sigma (B,), to the level end (B,); shape of x."""
        return self.model.raw(x, sigma, step.labels, step.augment, end)[:, : x.shape[1]]

    def online(self, step: Step) -> Tensor:
        """u(z, t, r), shape of x."""
        return self.u(step, step.x_t, step.levels.high, end_of(step.levels))

    def velocity(self, step: Step) -> Tensor:
        """The teacher's v = dz/dt = (x - D)/σ - D at x_t, shape of x."""
        denoised = self.teacher(step.x_t, step.levels.high, step.labels, step.augmentation)
        return (step.x_t - denoised) / per_image(step.levels.high, denoised) - denoised

    def derivative_along(self, step: Step, v: Tensor) -> tuple[Tensor, Tensor]:
        """u(z, t, r), and du/dt at fixed r along the velocity v = dz/dt; both of the shape of x, without gradient.

        In the suite's coordinates dσ/dt = (1 + σ)², and x = (1 + σ)·z gives dx/dt = (1 + σ)·(v + x).
        """
        rate, end = 1 + step.levels.high, end_of(step.levels)
        return self.derivative(
            step,
            lambda x, sigma: self.u(step, x, sigma, end),
            (step.x_t, step.levels.high),
            (per_image(rate, v) * (v + step.x_t), rate.square()),
        )
