"""Exponential moving averages of the weights, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from consistency_models.callbacks.step import StepCallback
from consistency_models.optim.ema import Constant, HalfLife, PowerFunction, ema_update

__all__ = ["WeightEMA"]


class WeightEMA(StepCallback):
    """Keeps averages of the model's parameters, one for each decay:  θ̄ ← β θ̄ + (1 - β) θ  after every optimiser step.

    The copies start at the initial weights; buffers are not averaged. In the checkpoint they are named plain tensors.

    Args:
        profile: names and decays, as `consistency_models.optim.ema.Constant`.
    """

    state_key = "WeightEMA"

    def __init__(self, profile: Constant | HalfLife | PowerFunction) -> None:
        self.profile = profile
        self.averages: dict[str, list[Tensor]] = {}
        self.names: list[str] = []
        self._restored: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Start the averages at the weights, or where the checkpoint left them."""
        super().on_train_start(trainer, method)
        self.names = [name for name, _ in method.model.named_parameters()]
        for name in self.profile.names:
            saved = self._restored.get(name)
            start = method.weights if saved is None else [saved[key] for key in self.names]
            # laid out as the parameters are: otherwise one multi-tensor kernel becomes one kernel a tensor
            self.averages[name] = [
                torch.empty_like(p).copy_(tensor.detach()) for tensor, p in zip(start, method.weights)
            ]
        self._restored = {}

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """θ̄ ← β θ̄ + (1 - β) θ, but for a step that was left out."""
        if method.skipped:
            return
        decays = self.profile.decays(step - 1, batch.rows.total)
        for average, decay in zip(self.averages.values(), decays):
            ema_update(average, method.weights, decay)

    @contextmanager
    def applied(self, method: LightningModule, name: str | None = None) -> Iterator[str]:
        """Within the block the model has the averaged weights (by default the first average) and is in eval mode."""
        name = next(iter(self.averages)) if name is None else name
        parameters = [p.detach() for p in method.weights]
        trained = [p.clone() for p in parameters]
        mode = method.model.training
        torch._foreach_copy_(parameters, self.averages[name])
        method.model.eval()
        try:
            yield name
        finally:
            torch._foreach_copy_(parameters, trained)
            method.model.train(mode)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """{decay: {parameter: average}}."""
        return {name: dict(zip(self.names, average)) for name, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Keep the averages of a checkpoint until training begins."""
        self._restored = state
