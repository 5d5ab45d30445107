"""Exponential moving averages of the weights, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from consistency_models.callbacks.step import StepCallback
from consistency_models.errors import ConfigError
from consistency_models.optim.ema import Constant, HalfLife, PowerFunction, ema_update
from consistency_models.optim.sharding import gathered, local_shards, shard_like, unsharded

__all__ = ["WeightEMA"]


class WeightEMA(StepCallback):
    """Updates averages of the trained parameters, one for each decay:  θ̄ ← β θ̄ + (1 - β) θ  after each optimiser step.

    The averages start at the initial weights; buffers are not averaged. A checkpoint stores the averages as named plain
    tensors.

    Args:
        profile: names and decays, such as `consistency_models.optim.ema.Constant`.

    Raises:
        ConfigError: the profile does not have one decay for each name.
    """

    state_key = "WeightEMA"

    def __init__(self, profile: Constant | HalfLife | PowerFunction) -> None:
        names, decays = getattr(profile, "names", ()), profile.decays(0, 1)
        if not names or not hasattr(decays, "__len__") or len(decays) != len(names):
            allowed = "a profile with `names` and as many decays, such as consistency_models.optim.ema.Constant"
            reason = f"its names are {list(names)}, and its decays of the first step are {decays}"
            raise ConfigError("ema", type(profile).__name__, allowed, reason=reason)
        self.profile = profile
        self.averages: dict[str, list[Tensor]] = {}
        self.names: tuple[str, ...] = ()
        self.parameters: tuple[Tensor, ...] = ()
        self._restored: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Initialise the averages from the weights, or from the checkpoint."""
        super().on_train_start(trainer, method)
        trained = [item for item in method.model.named_parameters() if item[1].requires_grad]
        self.names, self.parameters = zip(*trained)
        for name in self.profile.names:
            saved = self._restored.get(name)
            start = method.weights
            if saved is not None:
                start = local_shards(shard_like(saved[key], p) for key, p in zip(self.names, self.parameters))
            # Same memory layout as the parameters; otherwise torch runs one kernel per tensor, not a multi-tensor one.
            self.averages[name] = [
                torch.empty_like(p).copy_(tensor.detach()) for tensor, p in zip(start, method.weights)
            ]
        self._restored = {}

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Update the averages, θ̄ ← β θ̄ + (1 - β) θ; a skipped step changes nothing."""
        if method.skipped:
            return
        decays = self.profile.decays(step - 1, batch.rows.total)
        for average, decay in zip(self.averages.values(), decays):
            ema_update(average, method.weights, decay)

    @contextmanager
    def applied(self, method: LightningModule) -> Iterator[str]:
        """Put the first average into the model, in eval mode, within the block; yields its name.

        Compiled networks run eagerly in the block: each of its batch sizes would be compiled, for a few calls.
        """
        name = next(iter(self.averages))
        parameters = [p.detach() for p in method.weights]
        trained = [p.clone() for p in parameters]
        mode = method.model.training
        torch._foreach_copy_(parameters, self.averages[name])
        method.model.eval()
        is_compiled = any(module._compiled_call_impl is not None for module in method.model.modules())
        try:
            with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
                yield name
        finally:
            torch._foreach_copy_(parameters, trained)
            method.model.train(mode)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """{decay: {parameter: average}}."""
        whole = {
            name: dict(zip(self.names, map(unsharded, average, self.parameters)))
            for name, average in self.averages.items()
        }
        return gathered(whole)

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Keep the averages of a checkpoint until training begins."""
        self._restored = state
