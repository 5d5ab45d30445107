"""What makes a multirun of Hydra one thing: one folder that it goes on in, and jobs that are done once.

Hydra runs the jobs, with whichever launcher and sweeper are chosen; here is what it asks of its callbacks, and what
each job does in its folder.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from consistency_models.app.checks.files import has_checkpoint
from consistency_models.app.folder import RunFolder, is_run_of
from consistency_models.app.sweep_folder import SweepFolder
from consistency_models.errors import ConfigError, Exit

__all__ = ["Multirun", "run_or_resume_job", "state_of"]

# Here, because a job in a process of its own imports this module first.
OmegaConf.register_new_resolver("either", lambda test, yes, no: yes if test else no, replace=True)

Outcome = tuple[Exit, float | None]


class Multirun(Callback):
    """Chooses the folder: of a multirun, the one in which the same command was interrupted, if there is one.

    Under torchrun all processes take the first one's.
    """

    folder: ClassVar[SweepFolder | None] = None
    """Of the multirun that this process runs."""
    claim: ClassVar[FileLock | None] = None
    """That no other process runs it, too."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before a single run."""
        with read_write(config), open_dict(config):
            config.hydra.run.dir = broadcast_from_rank0(str(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before the first job."""
        typed = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
        typed = [line for line in typed if not re.match("[+~]*hydra[/.]launcher", line)]  # it may go on elsewhere
        jobs, folder = grid(config), SweepFolder(config.hydra.sweep.dir)
        if os.environ.get("RANK", "0") == "0":
            Multirun.folder = Multirun.claim = None
            folder = self._claimed(folder, typed, jobs)
            folder.begin(typed, jobs)
        path = broadcast_from_rank0(str(folder.path))
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = path
            quoted = QuotedString(path, Quote.single).with_quotes()
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted}")  # for the jobs, which are composed anew
        Multirun.folder = SweepFolder(path)

    def _claimed(self, new: SweepFolder, typed: list[str], jobs: list[list[str]] | None) -> SweepFolder:
        """The newest folder in which the same multirun is not finished and nobody is at it; else this new one."""
        beside = sorted(new.path.parent.glob("*/jobs.csv"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        same = [folder for folder in (SweepFolder(file.parent) for file in beside) if folder.is_of(typed, jobs)]
        for folder in [*(folder for folder in same if not folder.finished), new]:
            Multirun.claim = folder.claim()
            if Multirun.claim is not None:
                return folder
        busy = ConfigError(
            "hydra.sweep.dir", new.path, "a folder of no other process", reason="another process works in it"
        )
        sys.exit(f"error: {busy}")


def grid(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job, None where a sweeper searches."""
    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return BasicSweeper.split_arguments(overrides, None)[0]


def broadcast_from_rank0(text: str) -> str:
    """What the first of torchrun's processes says; without torchrun the text itself."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return text
    from torch.distributed import TCPStore

    key = f"consistency_models/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        store.set(key, text)
    return store.get(key).decode()


def state_of(folder: Path, overrides: list[str]) -> str | None:
    """What an earlier attempt at a job has left: "DONE", "begun" with a checkpoint to go on from, or None."""
    if not is_run_of(folder, overrides):
        return None
    return "DONE" if RunFolder(folder).state == "DONE" else "begun" if has_checkpoint(folder) else None


def run_or_resume_job(run: Callable[[dict[str, Any]], Outcome], settings: dict[str, Any]) -> Outcome:
    """Run a job unless an earlier attempt has done it; where one has begun, go on from its checkpoint.

    Args:
        run: trains with these settings in the job's folder.
        settings: the resolved configuration.
    """
    from lightning.pytorch.utilities import rank_zero_only

    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    sweep, job = SweepFolder(folder.parent), folder.name
    state = state_of(folder, overrides)
    if state == "DONE":
        return Exit.DONE, monitored(folder)
    if state == "begun":
        settings["ckpt_path"] = str(folder)
    if rank_zero_only.rank == 0:
        sweep.note(job, overrides)
    code, metric = run(settings)
    if rank_zero_only.rank == 0:
        sweep.note(job, overrides, int(code))
    give_back_memory()
    if code == Exit.STOPPED and Multirun.folder is not None:
        sys.exit(int(code))  # whoever stops a job of this process means all of them
    return code, metric


def monitored(folder: Path) -> float | None:
    """The final value of what a finished run monitors, None without any."""
    summary = json.loads((folder / "summary.json").read_text())
    return summary.get("metrics", {}).get("final", {}).get(summary.get("monitor"))


def give_back_memory() -> None:
    """Let go of what the last job had in memory, so that a hundred jobs need no more than one."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
