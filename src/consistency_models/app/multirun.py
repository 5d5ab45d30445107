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
from omegaconf import DictConfig, open_dict, read_write

from consistency_models.app.checks.files import has_checkpoint
from consistency_models.app.folder import RunFolder, is_run_of, make_new_folder
from consistency_models.app.sweep_folder import SweepFolder
from consistency_models.errors import ConfigError, Exit

__all__ = ["Multirun", "run_or_resume_job", "state_of"]

Outcome = tuple[Exit, float | None]


class Multirun(Callback):
    """Chooses the folder: of a multirun, the one in which the same command was interrupted, if there is one.

    Under torchrun all processes take the first one's.
    """

    folder: ClassVar[SweepFolder | None] = None
    """Of the multirun that this process runs."""
    claim: ClassVar[FileLock | None] = None
    """That no other process runs it, too."""
    run_folder: ClassVar[RunFolder | None] = None
    """Of the run that this process trains."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before a single run: two that start in the same second get a folder each."""
        folder = str(config.hydra.run.dir)
        if _rank() == 0 and not _is_typed(config, "hydra.run.dir"):
            folder = _new_folder(folder)
        with read_write(config), open_dict(config):
            config.hydra.run.dir = broadcast_from_rank0(folder)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before a single run and before each job of a multirun."""
        Multirun.run_folder = RunFolder(config.hydra.runtime.output_dir) if config.train and _rank() == 0 else None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before the first job."""
        typed = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
        typed = [line for line in typed if not re.match("[+~]*hydra[/.]launcher", line)]  # it may go on elsewhere
        jobs, folder = grid(config), SweepFolder(config.hydra.sweep.dir)
        if _rank() == 0:
            Multirun.folder = Multirun.claim = None
            folder = self._claimed(folder, typed, jobs, _is_typed(config, "hydra.sweep.dir"))
            folder.begin(typed, jobs)
        path = broadcast_from_rank0(str(folder.path))
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = path
            quoted = QuotedString(path, Quote.single).with_quotes()
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted}")  # for the jobs, which are composed anew
        Multirun.folder = SweepFolder(path)

    def _claimed(self, new: SweepFolder, typed: list[str], jobs: list[list[str]] | None, is_named: bool) -> SweepFolder:
        """The newest folder in which the same multirun is not finished and nobody is at it; else this new one."""
        beside = sorted(new.path.parent.glob("*/jobs.csv"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        same = [folder for folder in (SweepFolder(file.parent) for file in beside) if folder.is_of(typed, jobs)]
        for folder in [*(folder for folder in same if not folder.finished), *([new] if is_named else [])]:
            Multirun.claim = folder.claim()
            if Multirun.claim is not None:
                return folder
        if is_named:
            reason = "another process works in it"
            busy = ConfigError("hydra.sweep.dir", new.path, "a folder of no other process", reason=reason)
            print(f"error: {busy}", file=sys.stderr)
            sys.exit(int(Exit.BAD_INPUT))
        new = SweepFolder(_new_folder(new.path))
        Multirun.claim = new.claim()
        return new


def _is_typed(config: DictConfig, key: str) -> bool:
    return any(line.lstrip("+").startswith(f"{key}=") for line in config.hydra.overrides.hydra)


def _new_folder(path: str | Path) -> str:
    """`make_new_folder`, whose errors Hydra would turn into a warning."""
    try:
        return str(make_new_folder(path))
    except OSError as error:
        print(
            f"error: {ConfigError('run folder', path, 'a folder that can be made', reason=str(error))}", file=sys.stderr
        )
        sys.exit(int(Exit.STORAGE))


def _rank() -> int:
    """The number of this process among those that torchrun or srun has started."""
    return int(os.environ.get("RANK") or (os.environ.get("SLURM_PROCID", "0") if _of_srun() else "0"))


def _of_srun() -> bool:
    """Whether srun has started several processes of this command."""
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def grid(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job, None where a sweeper searches."""
    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return BasicSweeper.split_arguments(overrides, None)[0]


_stores: list[Any] = []  # a store ends with its object; the others may read later


def broadcast_from_rank0(text: str) -> str:
    """What the first of the processes of torchrun or srun says; without them the text itself."""
    key = f"consistency_models/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed import TCPStore

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    elif _of_srun():
        from lightning.fabric.plugins.environments import SLURMEnvironment
        from torch.distributed import TCPStore

        slurm = SLURMEnvironment()  # the training's own store takes this port later
        store = TCPStore(slurm.main_address, slurm.main_port + 1, is_master=_rank() == 0, wait_for_workers=False)
        _stores.append(store)
    else:
        return text
    if _rank() == 0:
        store.set(key, text)
    return store.get(key).decode()


def state_of(folder: Path, overrides: list[str]) -> str | None:
    """What an earlier attempt at a job has left: "DONE", "begun" with a checkpoint to go on from, or None."""
    if not is_run_of(folder, overrides):
        return None
    return "DONE" if RunFolder(folder).state == "DONE" else "begun" if has_checkpoint(folder) else None


def run_or_resume_job(run: Callable[[dict[str, Any]], Outcome], config: dict[str, Any]) -> Outcome:
    """Run a job unless an earlier attempt has done it; where one has begun, go on from its checkpoint.

    Args:
        run: trains as the configuration says in the job's folder.
        config: the resolved configuration.
    """
    from lightning.pytorch.utilities import rank_zero_only

    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    sweep, job = SweepFolder(folder.parent), folder.name
    state = state_of(folder, overrides)
    if state == "DONE":
        return Exit.DONE, monitored(folder)
    if state == "begun":
        config["ckpt_path"] = str(folder)
    if rank_zero_only.rank == 0:
        sweep.note(job, overrides)
    code, metric = run(config)
    if rank_zero_only.rank == 0:
        sweep.note(job, overrides, int(code))
    give_back_memory()
    if code == Exit.STOPPED and Multirun.folder is not None:
        sys.exit(int(code))  # whoever stops a job of this process means all of them
    return code, metric


def monitored(folder: Path) -> float | None:
    """The final value of the monitored metric of a finished run, None where the run has none."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        return summary.get("metrics", {}).get("final", {}).get(summary.get("monitor"))
    except (OSError, ValueError, AttributeError, TypeError):  # lost or damaged since
        return None


def give_back_memory() -> None:
    """Let go of what the last job had in memory, so that a hundred jobs need no more than one."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
