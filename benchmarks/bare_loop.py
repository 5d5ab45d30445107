"""The training step of iCT in a bare loop of PyTorch, and in Lightning's loop, for comparison with `train.py`.

Network, loss, optimiser and average are those of the case. There is no callback, no log, no check of NaN, and no seed
of a step: levels, noise and images come from torch's default generator.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from case import Case
from lightning import LightningModule, Trainer
from stopwatch import Stopwatch
from torch import Tensor

from consistency_models.conditions import encode
from consistency_models.noise.schedules import Levels
from consistency_models.random import BatchRandom

__all__ = ["timed", "timed_in_lightning"]


class BareStep:
    """The parts of the step, and the stopwatch that measures the parts.

    Args:
        case: a training of `model=ict`, whose weights do not change.
    """

    def __init__(self, case: Case) -> None:
        self.watch, self.batch, self.device = Stopwatch(case.device, case.clock), case.batch, case.device
        self.method = method = case.method
        self.model = copy.deepcopy(method.model).to(self.device).train()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer: Any = method.make_optimizer(self.weights)
        self.average = [p.detach().clone() for p in self.weights]
        source = case.data.source.to(self.device)
        self.images, self.classes = source.images, source.labels if case.data.conditional else None
        levels = method.schedule(BatchRandom(0, 0, self.batch, slice(0, self.batch)), 0, method.total_steps)
        self.grid = levels.grid.float().to(self.device)
        # The cost of a draw does not depend on the values.
        self.probabilities = torch.ones(len(self.grid) - 1, device=self.device)

    def loss(self) -> Tensor:
        """Draw a batch and compute its mean loss."""
        with self.watch.part("data"):
            indices = torch.randint(len(self.images), (self.batch,), device=self.device)
            x = self.images.index_select(0, indices).float().div_(127.5).sub_(1)
            classes = None if self.classes is None else self.classes.index_select(0, indices)
        labels = encode(self.model.network, classes)
        index = torch.multinomial(self.probabilities, self.batch, replacement=True)
        low, high = self.grid[index], self.grid[index + 1]
        noise = torch.randn_like(x)
        with self.watch.part("student"):
            online = self.model(x + high.view(-1, 1, 1, 1) * noise, high, labels)
        with self.watch.part("target"), torch.no_grad():
            target = self.model(x + low.view(-1, 1, 1, 1) * noise, low, labels)
        return (self.method.weighting(Levels(high, low)) * self.method.distance(online, target)).mean()

    def finish(self) -> None:
        """Update the average of the weights after the optimiser's step."""
        with self.watch.part("EMA"), torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 0.005)
        self.watch.next_step()


class InLightning(LightningModule):
    """The step for Lightning's trainer."""

    def __init__(self, step: BareStep) -> None:
        super().__init__()
        self.bare = step

    def configure_optimizers(self) -> Any:
        """Return the optimiser of the step."""
        return self.bare.optimizer

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Compute the loss; the batch of the loader is not used."""
        with self.bare.watch.part("rest"):
            return self.bare.loss()

    def optimizer_step(self, *arguments: Any) -> None:
        """Count the time of the optimiser, and of Lightning around it."""
        with self.bare.watch.part("optimiser"):
            super().optimizer_step(*arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Finish the step."""
        self.bare.finish()


def timed(case: Case, warm: int, steps: int) -> list[dict[str, float]]:
    """Return the seconds of each part, for each of `steps` steps after the first `warm` steps, as `Case.timed`.

    Args:
        case: a training of `model=ict`, whose weights do not change.
        warm: steps that are not measured.
        steps: measured steps.
    """
    step = BareStep(case)
    for _ in range(warm + steps):
        loss = step.loss()
        with step.watch.part("backward"):
            loss.backward()
        with step.watch.part("optimiser"):
            step.optimizer.step()
            step.optimizer.zero_grad()
        step.finish()
    return step.watch.seconds()[warm : warm + steps]


def timed_in_lightning(case: Case, warm: int, steps: int) -> list[dict[str, float]]:
    """As `timed`, in Lightning's loop without callbacks and loggers."""
    step = BareStep(case)
    trainer = Trainer(
        accelerator="gpu" if case.device == "cuda" else "cpu",
        devices=1,
        max_steps=warm + steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with step.watch.around(torch.Tensor, "backward", "backward"):
        trainer.fit(InLightning(step), range(warm + steps))
    return step.watch.seconds()[warm : warm + steps]
