"""The processes of a training, and the launch of the further processes."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

__all__ = ["cpu_threads", "strategy_of"]

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


def strategy_of(trainer: dict[str, Any], folder: Path) -> Any:
    """Return the strategy for Lightning's Trainer."""
    if trainer["strategy"] == "ddp":
        return _ChildrenFromConfig(folder, timeout=WAIT, find_unused_parameters=False, gradient_as_bucket_view=True)
    return trainer["strategy"]


def cpu_threads(trainer: dict[str, Any]) -> int:
    """Return the number of threads of this process; several processes on a CPU share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = trainer["devices"] if trainer["accelerator"] == "cpu" and isinstance(trainer["devices"], int) else 1
    return max(1, int(os.environ.get("OMP_NUM_THREADS", cores)) // processes)
