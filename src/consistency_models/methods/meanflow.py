"""MeanFlow: the average velocity of the probability-flow ODE, learned from data.

    z = (1 - t)·x0 + t·n,  v = n - x0        target = v - (t - r)·du/dt        du/dt along (v, 1) in (z, t), r fixed
    L(θ) = s / stop_gradient(s + ε)^p,       s = ‖u(z, t, r) - target‖², the sum over the image

With guidance v is ω·v + (1 - ω - κ)·u(z, t, t | no class) + κ·u(z, t, t | class) in target and derivative.
(Geng et al., Mean Flows for One-step Generative Modeling, arXiv 2505.13447, Eq. 6 to 11, Sec. 4.2 and 4.3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Len
from torch import Tensor

from consistency_models.methods.base import Step
from consistency_models.methods.flow_map import FlowMap, gap
from consistency_models.noise.schedules import per_image
from consistency_models.random import BatchRandom
from consistency_models.values import NotNegative, Positive, Share, checked

__all__ = ["MeanFlow"]


class MeanFlow(FlowMap):
    """LightningModule for MeanFlow.

    Args:
        power, eps: p and ε of the adaptive weight; p = 0 is the sum of squares.
        label_dropout: expected share of the rows whose class is dropped. As in the official code these are the first
            rows of the global batch, which have r = t if the schedule chooses rows by position.
        omega, kappa: ω and κ of the guidance, whose effective scale is ω/(1 - κ); (1, 0) is no guidance. Rows whose
            class is dropped use v without guidance.
        interval: range of the times t, in [0, 1], at which v is guided.
        own_velocity: improved MeanFlow: the derivative is along u(z, t, t) of the network instead of v. The target of
            the loss, the distance of u + (t - r)·du/dt to v, then depends on no network (arXiv 2512.02012).
        arguments: as for `FlowMap`.

    Raises:
        ValueError: power, eps or label_dropout is out of range, or the interval is not ascending.
    """

    needs_levels = "pairs of times"

    @checked
    def __init__(
        self,
        *,
        power: NotNegative = 0.75,
        eps: Positive = 1e-3,
        label_dropout: Share = 0.0,
        omega: float = 1.0,
        kappa: float = 0.0,
        interval: Annotated[Sequence[Share], Len(2, 2)] = (0.0, 1.0),
        own_velocity: bool = False,
        **arguments,
    ) -> None:
        super().__init__(**arguments)
        if not interval[0] <= interval[1]:
            raise ValueError(f"need an ascending interval; got {interval}")
        self.power, self.eps, self.label_dropout = power, eps, label_dropout
        self.omega, self.kappa, self.interval, self.own_velocity = omega, kappa, tuple(interval), own_velocity

    def encode_labels(self, labels: Tensor | None, rows: BatchRandom) -> Tensor | None:
        """One-hot labels; zeros for rows whose class is dropped."""
        labels = super().encode_labels(labels, rows)
        if labels is None or not self.label_dropout:
            return labels
        batch = replace(rows, local_slice=slice(0, rows.total))
        hidden = int((batch.rand("hidden labels") < self.label_dropout).sum())
        shown = (torch.arange(rows.total)[rows.local_slice] >= hidden).float()
        return labels * shown.to(labels.device, non_blocking=True)[:, None]

    def velocity(self, step: Step) -> Tensor:
        """v = n - x0, with the guidance of `omega`, `kappa` and `interval`; shape of x, without gradient."""
        v, t, classes = step.noise - step.x, step.levels.high, step.labels
        if (self.omega, self.kappa) == (1, 0) or classes is None:
            return v
        training = self.model.training
        self.model.eval()  # no dropout in the guidance
        hidden, shown = (
            self.u(replace(step, labels=labels), step.x_t, t, t) for labels in (torch.zeros_like(classes), classes)
        )
        self.model.train(training)
        guided = self.omega * v + (1 - self.omega - self.kappa) * hidden + self.kappa * shown
        time = t / (1 + t)
        inside = (time >= self.interval[0]) & (time <= self.interval[1]) & (classes.sum(1) > 0)
        return torch.where(per_image(inside, v), guided, v)

    def target(self, step: Step) -> Tensor:
        """v - (t - r)·du/dt, shape of x."""
        v, t = self.velocity(step), step.levels.high
        along = self.u(step, step.x_t, t, t) if self.own_velocity else v
        return v - per_image(gap(step.levels), v) * self.derivative_along(step, along)[1]

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """s/(s + ε)^p with s the distance times the number of values of an image; shape (B,)."""
        s = super().loss(step, online, target) * online[0].numel()
        return s / (s.detach() + self.eps) ** self.power
