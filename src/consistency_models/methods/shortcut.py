"""Shortcut models: a step of length d learns from two steps of length d/2, and the shortest is flow matching.

    bootstrap:   u_1 = u⁻(z, t, t - ½d),  u_2 = u⁻(clip(z - ½d·u_1), t - ½d, t - d),  target = clip(½(u_1 + u_2))
    other rows:  target = v at d = 1/sections                  z = (1 - t)·x0 + t·n with x0 ← x0 + 10⁻⁵·n

(Frans et al., One Step Diffusion via Shortcut Models, arXiv 2410.12557, Algorithm 1, and the official code. The
official network takes log₂ 1/d, this one takes d. Officially two rows may share an image; here each row has its own.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from consistency_models import conditions
from consistency_models.methods.base import Step
from consistency_models.methods.flow_map import FlowMap, gap
from consistency_models.noise.pairs import Dyadic
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.schedules import per_image
from consistency_models.values import NotNegative, Positive, checked

__all__ = ["Shortcut"]

FLOOR = 1e-5


class Shortcut(FlowMap):
    """LightningModule for Shortcut models; the schedule is `Dyadic`, u⁻ is the target network.

    Args:
        clip: points and targets are clamped to [-clip, clip].
        cfg_scale: w of classifier-free guidance in the shortest steps of the bootstrap; 1 is no guidance.
        arguments: as for `FlowMap`.

    Raises:
        ValueError: clip is not positive.
    """

    schedule: Dyadic

    needs_levels = "steps of lengths 2^-j"
    has_target_network = True

    @checked
    def __init__(self, *, clip: Positive = 4.0, cfg_scale: NotNegative = 1.0, **arguments) -> None:
        super().__init__(**arguments)
        self.clip, self.cfg_scale = clip, cfg_scale

    def network_input(self, step: Step) -> Tensor:
        """x + (σ + 10⁻⁵)·noise, shape of x."""
        return step.at(step.levels.high) + FLOOR * step.noise

    def half_step(self, step: Step, z: Tensor, t: Tensor, d: Tensor, shortest: Tensor) -> Tensor:
        """u⁻(z, t, t - ½d), guided in the rows of the shortest steps; shape of z."""
        sigma, end = ((time / (1 - time)) for time in (t, t - d / 2))
        model, x = cast(Preconditioned, self.target_model), z * per_image(1 + sigma, z)
        u = model.raw(x, sigma, step.labels, step.augment, end)[:, : z.shape[1]]
        if self.cfg_scale == 1:
            return u
        none = conditions.unconditional(model, step.labels)
        hidden = model.raw(x, sigma, none, step.augment, end)[:, : z.shape[1]]
        return torch.where(per_image(shortest, z), hidden + self.cfg_scale * (u - hidden), u)

    def target(self, step: Step) -> Tensor:
        """Two half steps in the bootstrap rows, v in the others; shape of x."""
        v = (1 - FLOOR) * step.noise - step.x
        count = self.schedule.bootstrapped(step.rows)
        if not count and not self.sharded:
            return v
        first = slice(max(count, 1))  # a sharded network is called by all processes, also by one without such rows
        labels, augment = (None if each is None else each[first] for each in (step.labels, step.augment))
        rows = replace(step, labels=labels, augment=augment)
        t = step.levels.high[first] / (1 + step.levels.high[first])
        d = gap(step.levels)[first]
        z, shortest = step.x_t[first] * per_image(1 - t, v), d < 3 / self.schedule.sections
        u_1 = self.half_step(rows, z, t, d, shortest)
        z_2 = (z - per_image(d / 2, z) * u_1).clamp(-self.clip, self.clip)
        u_2 = self.half_step(rows, z_2, t - d / 2, d, shortest)
        return torch.cat([((u_1 + u_2) / 2).clamp(-self.clip, self.clip)[:count], v[count:]])
