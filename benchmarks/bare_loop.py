"""The training step of iCT in a bare loop of PyTorch, for comparison with the same step of `train.py`.

Network, loss, optimiser and average are those of the case. There is no Lightning, no callback, no log, no check of NaN,
and no seed of a step: levels, noise and images come from torch's default generator.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from case import Case
from stopwatch import Stopwatch

from consistency_models.noise.schedules import Levels
from consistency_models.random import BatchRandom

__all__ = ["timed"]


def timed(case: Case, warm: int, steps: int) -> list[dict[str, float]]:
    """Return the seconds of each part, for each of `steps` steps after the first `warm` steps, as `Case.timed`.

    Args:
        case: a training of `model=ict`, whose weights do not change.
        warm: steps that are not measured.
        steps: measured steps.
    """
    watch, batch, device, method = Stopwatch(case.device, case.clock), case.batch, case.device, case.method
    model = copy.deepcopy(method.model).to(device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = method.make_optimizer(weights)
    average = [p.detach().clone() for p in weights]
    images = case.data.source.images.to(device)
    grid = method.schedule(BatchRandom(0, 0, batch, slice(0, batch)), 0, method.total_steps).grid.float().to(device)
    probabilities = torch.ones(len(grid) - 1, device=device)  # the cost of a draw does not depend on the values
    for _ in range(warm + steps):
        with watch.part("data"):
            x = images.index_select(0, torch.randint(len(images), (batch,), device=device)).float().div_(127.5).sub_(1)
        index = torch.multinomial(probabilities, batch, replacement=True)
        low, high = grid[index], grid[index + 1]
        noise = torch.randn_like(x)
        with watch.part("student"):
            online = model(x + high.view(-1, 1, 1, 1) * noise, high)
        with watch.part("target"), torch.no_grad():
            target = model(x + low.view(-1, 1, 1, 1) * noise, low)
        loss = (method.weighting(Levels(high, low)) * method.distance(online, target)).mean()
        with watch.part("backward"):
            loss.backward()
        with watch.part("optimiser"):
            optimizer.step()
            optimizer.zero_grad()
        with watch.part("EMA"), torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.005)
        watch.next_step()
    return watch.seconds()[warm : warm + steps]
