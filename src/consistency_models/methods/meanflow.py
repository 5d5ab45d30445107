"""MeanFlow: the average velocity of the probability-flow ODE, learned from data.

    z = (1 - t)·x0 + t·n,  v = n - x0        target = v - (t - r)·du/dt        du/dt along (v, 1) in (z, t), r fixed
    L(θ) = s / stop_gradient(s + ε)^p,       s = ‖u(z, t, r) - target‖², the sum over the image

With guidance v is ω·v + (1 - ω - κ)·u(z, t, t | no class) + κ·u(z, t, t | class) in target and derivative.
(Geng et al., Mean Flows for One-step Generative Modeling, arXiv 2505.13447, Eq. 6 to 11, Sec. 4.2 and 4.3.)

Improved MeanFlow: du/dt is along w(z, t, t | class), where w is a second output of the network, trained with the loss
of u on the target v; and v is v + (1 - 1/ω)·(w(z, t, t | class) - w(z, t, t | no class)), with ω as an input.
(Geng et al., Improved Mean Flows, arXiv 2512.02012, and the official code.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Gt, Len
from torch import Tensor

from consistency_models import conditions
from consistency_models.conditions import Prompt
from consistency_models.methods.base import Step
from consistency_models.methods.flow_map import FlowMap, end_of, gap
from consistency_models.noise.schedules import per_image
from consistency_models.random import BatchRandom
from consistency_models.values import NotNegative, Positive, Share, checked

__all__ = ["MeanFlow"]


def at_all_times(scale: Tensor) -> Tensor:
    """The inputs of a guidance of 1 - 1/ω = scale (B,) in the interval [0, 1], shape (B, 3)."""
    return torch.stack([scale, torch.zeros_like(scale), torch.ones_like(scale)], 1)


class MeanFlow(FlowMap):
    """LightningModule for MeanFlow and improved MeanFlow.

    Args:
        power, eps: p and ε of the adaptive weight; p = 0 is the sum of squares.
        label_dropout: expected share of the rows whose class or text is dropped. As in the official code these are the
            first rows of the global batch, which have r = t if the schedule chooses rows by position.
        omega, kappa: ω and κ of the guidance, whose effective scale is ω/(1 - κ); (1, 0) is no guidance. Rows whose
            class is dropped use v without guidance.
        interval: range of the times t, in [0, 1], at which v is guided.
        own_velocity: the derivative is along the network's own velocity of the class, not along v. If the network has
            two outputs, this velocity is the second, w, otherwise u(z, t, t). The target of the loss, the distance of
            u + (t - r)·du/dt to v, then depends on no network.
        guidance_input: β: 1 - 1/ω and the interval are the last three inputs of the network. ω has the density ω^-β on
            [1, omega_max], the interval is U[0, ½] to U[½, 1], and [0, 1] where r = t. None: they are constants.
        omega_max: the largest ω that `guidance_input` draws.
        difference: share of the level for derivatives by differences (`Method.difference`); None: forward mode.
        arguments: as for `FlowMap`.

    Raises:
        ValueError: an argument is out of range, or the interval is not ascending.
    """

    needs_levels = "pairs of times"
    second_head = True
    guidance_inputs = 3

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
        guidance_input: NotNegative | None = None,
        omega_max: Annotated[float, Gt(1)] = 8.0,
        difference: Positive | None = None,
        **arguments,
    ) -> None:
        super().__init__(**arguments)
        if not interval[0] <= interval[1]:
            raise ValueError(f"need an ascending interval; got {interval}")
        self.power, self.eps, self.label_dropout, self.difference = power, eps, label_dropout, difference
        self.omega, self.kappa, self.interval, self.own_velocity = omega, kappa, tuple(interval), own_velocity
        self.guidance_input, self.omega_max = guidance_input, omega_max

    def encode_labels(self, labels: Tensor | Prompt | None, rows: BatchRandom) -> Tensor | Prompt | None:
        """One-hot labels or prompts; zeros or the empty prompt for rows whose class or text is dropped."""
        labels = super().encode_labels(labels, rows)
        if labels is None or not self.label_dropout:
            return labels
        batch = replace(rows, local_slice=slice(0, rows.total))
        hidden = int((batch.rand("hidden labels") < self.label_dropout).sum())
        return conditions.dropped(labels, torch.arange(rows.total)[rows.local_slice] < hidden)

    def inputs(self, step: Step) -> Tensor | None:
        """The labels of the augmentation; with `guidance_input`, followed by 1 - 1/ω and the interval."""
        if self.guidance_input is None:
            return step.augment
        u, low, high = step.rows.rand("guidance", 3, dtype=torch.float64).unbind(1)
        b = 1 - self.guidance_input
        omega = self.omega_max**u if b == 0 else (1 + u * (self.omega_max**b - 1)) ** (1 / b)
        drawn = torch.stack([1 - 1 / omega, low / 2, (1 + high) / 2], 1).to(step.x, non_blocking=True)
        equal = end_of(step.levels) == step.levels.high
        drawn = torch.where(equal[:, None], at_all_times(drawn[:, 0]), drawn)
        return drawn if step.augment is None else torch.cat([step.augment, drawn], 1)

    def own(self, step: Step, labels: Tensor | Prompt | None, scale: Tensor) -> Tensor:
        """The network's velocity at (z, t), without dropout, with the input 1 - 1/ω = scale (B,); shape of x."""
        training, t, augment = self.model.training, step.levels.high, step.augment
        if augment is not None and self.guidance_input is not None:
            augment = torch.cat([augment[:, :-3], at_all_times(scale)], 1)
        self.model.eval()
        F = self.model.raw(step.x_t, t, labels, augment, t)
        self.model.train(training)
        return F.split(step.x.shape[1], 1)[-1 if self.own_velocity else 0]

    def velocities(self, step: Step) -> tuple[Tensor, Tensor]:
        """v = n - x0 with guidance, and the velocity of the derivative; both of the shape of x, without gradient."""
        v, t, labels, omega = step.noise - step.x, step.levels.high / (1 + step.levels.high), step.labels, self.omega
        kappa, low, high = (torch.full_like(t, value) for value in (self.kappa, *self.interval))
        if self.guidance_input is not None:
            assert step.augment is not None
            omega, (kappa, low, high) = 1.0, step.augment[:, -3:].unbind(1)
        if self.own_velocity and step.classes is not None:
            labels = super().encode_labels(step.classes, step.rows)  # the derivative takes the classes that are dropped
        inside = (t >= low) & (t <= high)
        guided = step.labels is not None and (self.guidance_input is not None or (omega, self.kappa) != (1, 0))
        mixed = guided and (self.guidance_input is not None or self.kappa != 0)
        shown = self.own(step, labels, kappa.where(inside, 0)) if mixed or self.own_velocity else v
        if guided:
            none = conditions.unconditional(self.model, step.labels)
            hidden, k = self.own(step, none, torch.zeros_like(kappa)), per_image(kappa, v)
            inside = per_image(inside & conditions.is_given(step.labels), v)
            v = torch.where(inside, omega * v + (1 - omega - k) * hidden + k * shown, v)
        return v, shown if self.own_velocity else v

    def online(self, step: Step) -> Tensor:
        """u(z, t, r), shape of x; with `own_velocity` all channels of the network, i.e. followed by w if it has w."""
        if not self.own_velocity:
            return super().online(step)
        return self.model.raw(step.x_t, step.levels.high, step.labels, step.augment, end_of(step.levels))

    def target(self, step: Step) -> Tensor:
        """v - (t - r)·du/dt, shape of x; followed by v, the target of w, if the online output is followed by w."""
        v, along = self.velocities(step)
        target = v - per_image(gap(step.levels), v) * self.derivative_along(step, along)[1]
        outputs = 1 if step.online is None else step.online.shape[1] // v.shape[1]
        return torch.cat([target, *[v] * (outputs - 1)], 1)

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """s/(s + ε)^p with s the distance times the number of values of an image, summed over u and w; shape (B,)."""
        total = torch.zeros_like(step.levels.high)
        for u, goal in zip(*(each.split(step.x.shape[1], 1) for each in (online, target))):
            s = super().loss(step, u, goal) * u[0].numel()
            total = total + s / (s.detach() + self.eps) ** self.power
        return total
