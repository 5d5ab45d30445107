"""The processes of a training, and the launch of the further processes."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from consistency_models.errors import ConfigError
from consistency_models.optim.sharding import gathered, shard_like, shard_module

__all__ = ["strategy_of"]

WAIT = timedelta(hours=6)  # other processes wait while the first one scores 50,000 images; default of torch: 30 min


class _ChildrenFromConfig(DDPStrategy):
    """DDP whose further processes train from config.yaml of the run.

    Lightning would start them with the command line of this process. In a multirun, each would start the whole sweep.
    """

    def __init__(self, folder: Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.folder = folder

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if self._launcher is None or self.cluster_environment.creates_processes_externally:
            return  # torchrun and Slurm start all processes; their environment is also for the next job
        launch = self._launcher.launch

        def from_config(function: Any, *arguments: Any, trainer: Any = None, **named: Any) -> Any:
            from hydra.core.hydra_config import HydraConfig

            hydra, command = HydraConfig.instance().cfg, sys.argv
            script = str(Path(__file__).with_name("job.py"))
            HydraConfig.instance().cfg, sys.argv = None, [script, "--job", str(self.folder), str(os.getpid())]
            started: list[bool] = []

            def go(*a: Any, **n: Any) -> Any:
                HydraConfig.instance().cfg, sys.argv = hydra, command
                started.append(True)
                return function(*a, **n)

            try:
                return launch(go, *arguments, trainer=trainer, **named)
            except BaseException:
                # Kill the other processes, which would wait for this process without end. Clear the list, otherwise
                # Lightning's observer kills this process before the error is reported.
                self._launcher.kill(signal.SIGKILL)
                self._launcher.procs.clear()
                raise
            finally:
                if not started:
                    HydraConfig.instance().cfg, sys.argv = hydra, command
                # The next job of a multirun starts with other processes.
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                    os.environ.pop(name, None)

        self._launcher.launch = from_config


class _Sharded(_ChildrenFromConfig):
    """FSDP2: weights, gradients, optimiser state, averages and target network are divided over the processes.

    Each process reads the rows of the batch that it reads under DDP. The first process writes whole tensors, so a
    checkpoint is that of any other training.
    """

    def model_to_device(self) -> None:
        """Shard all networks of the method, and move the slices to the device.

        Raises:
            ConfigError: a parameter is a single number, which FSDP2 cannot divide.
        """
        for name, parameter in self.lightning_module.named_parameters():
            if parameter.ndim == 0:
                reason = f"{name} is a single number, which torch.distributed.fsdp does not divide"
                raise ConfigError("trainer.strategy", "fsdp", "auto, ddp with this network", reason=reason)
        for network in self.lightning_module.children():
            if any(True for _ in network.parameters()):
                shard_module(network, self.root_device.type)
        self.lightning_module.sharded = True
        self.lightning_module.list_weights()
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Do nothing: sharded modules reduce their gradients themselves."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return whole tensors on the first process, empty ones on the others."""
        return gathered(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return whole tensors on the first process, empty ones on the others."""
        return gathered(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Shard the whole tensors of a checkpoint, and load them."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"]):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, state in saved["state"].items():
                for name, value in state.items():
                    if getattr(value, "shape", None) == parameters[number].shape:
                        state[name] = shard_like(value, parameters[number])
        super().load_optimizer_state_dict(checkpoint)


def strategy_of(trainer: dict[str, Any], folder: Path) -> Any:
    """Return the strategy for Lightning's Trainer."""
    made = {
        "ddp": partial(_ChildrenFromConfig, find_unused_parameters=False, gradient_as_bucket_view=True),
        "fsdp": _Sharded,
    }
    name = trainer["strategy"]
    return made[name](folder, timeout=WAIT) if name in made else name
