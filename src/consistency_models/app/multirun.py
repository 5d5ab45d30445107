"""Resumable multiruns of Hydra: one folder for each multirun, and no job runs twice.

Hydra runs the jobs with the chosen launcher and sweeper. This module has the callback of Hydra that chooses the folder,
and the function that runs or resumes a job in its folder.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from consistency_models.app.checks.axes import axes_of, is_grid
from consistency_models.app.checks.files import has_checkpoint
from consistency_models.app.folder import RunFolder, is_run_of, make_new_folder
from consistency_models.app.sweep_folder import SweepFolder
from consistency_models.errors import ConfigError, Exit, exit_code

__all__ = ["Multirun", "run_or_resume_job", "state_of", "was_tested"]

Outcome = tuple[Exit, float | None]


class Multirun(Callback):
    """Choose the folder of a run or a multirun. An interrupted multirun of the same command keeps its folder.

    Under torchrun, all processes use the folder of the first process.
    """

    folder: ClassVar[SweepFolder | None] = None
    """Folder of the multirun of this process."""
    claim: ClassVar[FileLock | None] = None
    """Lock of this folder against other processes."""
    run_folder: ClassVar[RunFolder | None] = None
    """Folder of the run of this process."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before a single run: create a new folder, unless the command names one.

        Runs that start in the same second have folders of their own.
        """
        folder = str(config.hydra.run.dir)
        with exit_on_error(folder):
            if _rank() == 0:
                if _is_typed(config, "hydra.run.dir"):
                    Path(folder).mkdir(parents=True, exist_ok=True)
                else:
                    folder = str(make_new_folder(folder))
            folder = broadcast_from_rank0(folder)
        with read_write(config), open_dict(config):
            config.hydra.run.dir = folder

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before a single run and before each job of a multirun: set `run_folder`."""
        folder = config.hydra.runtime.output_dir
        with exit_on_error(folder):
            Multirun.run_folder = RunFolder(folder) if config.train and _rank() == 0 else None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Hydra's hook before the first job: choose, lock and start the folder."""
        typed = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
        # Another launcher may continue the multirun.
        typed = [line for line in typed if not re.match("[+~]*hydra[/.]launcher", line)]
        folder = SweepFolder(config.hydra.sweep.dir)
        with exit_on_error(folder.path):
            if _rank() == 0:
                Multirun.folder = Multirun.claim = None
                jobs = grid(config)
                folder = self._claimed(folder, typed, jobs, _is_typed(config, "hydra.sweep.dir"))
                folder.begin(typed, jobs)
            path = broadcast_from_rank0(str(folder.path))
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = path
            quoted = QuotedString(path, Quote.single).with_quotes()
            # The configurations of the jobs are composed again.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted}")
        Multirun.folder = SweepFolder(path)

    def _claimed(self, new: SweepFolder, typed: list[str], jobs: list[list[str]] | None, is_named: bool) -> SweepFolder:
        """Lock the newest folder with the same multirun, unfinished and not locked; otherwise a new folder."""
        beside = sorted(new.path.parent.glob("*/jobs.csv"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        same = [folder for folder in (SweepFolder(file.parent) for file in beside) if folder.matches(typed, jobs)]
        for folder in [*(folder for folder in same if not folder.finished), *([new] if is_named else [])]:
            Multirun.claim = folder.claim()
            if Multirun.claim is not None:
                return folder
        if is_named:
            reason = "another process works in it"
            raise ConfigError("hydra.sweep.dir", new.path, "a folder of no other process", reason=reason)
        new = SweepFolder(make_new_folder(new.path))
        Multirun.claim = new.claim()
        return new


def _is_typed(config: DictConfig, key: str) -> bool:
    return any(line.lstrip("+").startswith(f"{key}=") for line in config.hydra.overrides.hydra)


@contextmanager
def exit_on_error(folder: str | Path) -> Iterator[None]:
    """Exit the command if the block fails, with the error in one line.

    Hydra makes an error of a callback a warning and goes on, and prints the traceback of any error of a sweeper.

    Args:
        folder: the folder that the block creates or writes to; an `OSError` is reported for it.
    """
    try:
        yield
    except Exception as error:
        code = exit_code(error, Exit.UNEXPECTED)
        if code == Exit.UNEXPECTED:
            traceback.print_exc()
        line = f"{type(error).__name__}: {error}" if code == Exit.UNEXPECTED else str(error)
        if isinstance(error, OSError):
            line = str(ConfigError("run folder", folder, "a folder that can be created", reason=line))
        print(f"error: {line}", file=sys.stderr)
        sys.exit(int(code))


def _rank() -> int:
    """Return the rank of this process among the processes of torchrun or srun."""
    return int(os.environ.get("RANK") or (os.environ.get("SLURM_PROCID", "0") if _of_srun() else "0"))


def _of_srun() -> bool:
    """Whether srun has started several processes of this command."""
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def grid(config: DictConfig) -> list[list[str]] | None:
    """Return the overrides of each job; None for a sweeper that searches."""
    if not is_grid(config):
        return None
    params = [f"{key}={value}" for key, value in axes_of(config).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return BasicSweeper.split_arguments(overrides, None)[0]


_stores: list[Any] = []  # keeps the stores alive: other processes may read later


def broadcast_from_rank0(text: str) -> str:
    """Return the text of the first process of torchrun or srun; for a single process, its own text."""
    key = f"consistency_models/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed import TCPStore

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    elif _of_srun():
        from lightning.fabric.plugins.environments import SLURMEnvironment
        from torch.distributed import TCPStore

        slurm = SLURMEnvironment()
        # The training takes main_port = 15000 + the last four digits of the job, and so do other jobs on this node.
        port = 15_000 + slurm.main_port % 10_000  # that of a job 5000 later
        store = TCPStore(slurm.main_address, port, is_master=_rank() == 0, wait_for_workers=False)
        _stores.append(store)
    else:
        return text
    if _rank() == 0:
        store.set(key, text)
    return store.get(key).decode()


def state_of(folder: Path, overrides: list[str]) -> str | None:
    """Return the state of an earlier attempt at a job: "DONE", "begun" (has a checkpoint), or None."""
    if not is_run_of(folder, overrides):
        return None
    return "DONE" if RunFolder(folder).state == "DONE" else "begun" if has_checkpoint(folder) else None


def was_tested(folder: Path) -> bool:
    """Whether the evaluation of `test=true` has written its results."""
    return (folder / "evaluation" / "evaluation.json").exists()


def run_or_resume_job(run: Callable[[dict[str, Any]], Outcome], config: dict[str, Any]) -> Outcome:
    """Run a job. Skip it if an earlier attempt is done; resume it if an earlier attempt has a checkpoint.

    The process of an earlier attempt may have been killed after its training: then the job is tested, if it was not,
    and noted.

    Args:
        run: trains as configured in the folder of the job.
        config: the resolved configuration.
    """
    from lightning.pytorch.utilities import rank_zero_only

    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    sweep, job = SweepFolder(folder.parent), folder.name
    state = state_of(folder, overrides)
    if state == "DONE":
        code = Exit.DONE
        if rank_zero_only.rank == 0 and not sweep.is_noted(job):
            if config["test"] and not was_tested(folder):
                code, _ = run({**config, "train": False, "ckpt_path": str(folder)})
            sweep.note(job, overrides, int(code))
        return code, RunFolder(folder).monitored[1]
    if state == "begun":
        config["ckpt_path"] = str(folder)
    if rank_zero_only.rank == 0:
        sweep.note(job, overrides)
    code, metric = run(config)
    if rank_zero_only.rank == 0:
        sweep.note(job, overrides, int(code))
    free_memory()
    if code == Exit.STOPPED and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        import submitit

        if _is_running():
            signal.raise_signal(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])  # submitit requeues the job
        # Slurm is requeueing or cancelling the job. A return would be a result, and the command would not wait.
        sys.exit(int(code))
    if code == Exit.STOPPED and Multirun.folder is not None:
        sys.exit(int(code))  # a signal to a job of this process stops all its jobs
    return code, metric


def _is_running() -> bool:
    """Whether Slurm counts this job as running. After scancel or a requeue, Slurm does not."""
    squeue = ("squeue", "--noheader", "--format=%T", f"--job={os.environ['SLURM_JOB_ID']}")
    return subprocess.run(squeue, capture_output=True, text=True, check=False).stdout.strip() == "RUNNING"


def free_memory() -> None:
    """Free the memory of the last job, so that many jobs need no more memory than one."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
