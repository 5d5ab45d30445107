"""`hydra/launcher=processes`: run the jobs of a multirun as parallel processes of this machine."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from consistency_models.callbacks.stopping import SIGNALS
from consistency_models.devices import available_cores
from consistency_models.values import Count, Size, Text, checked

log = logging.getLogger(__name__)

__all__ = ["Processes"]


ConfigStore.instance().store(
    "processes",
    {"_target_": "hydra_plugins.consistency_models.processes.Processes", "jobs": None, "gpus": None},
    group="hydra/launcher",
    provider="consistency_models",
)


class Processes(Launcher):
    """Runs each job as a separate command, `train.py` with the job's overrides, on one GPU or a share of the cores.

    The end of a job frees its memory, and a killed job does not affect other jobs.

    Args:
        jobs: number of parallel jobs; None: one per GPU, or one per core without GPUs.
        gpus: GPUs to use, as in CUDA_VISIBLE_DEVICES; None: all visible GPUs. More jobs than GPUs share them.
    """

    @checked
    def __init__(
        self, jobs: Size | None = None, gpus: Annotated[Sequence[Count | Text], MinLen(1)] | None = None
    ) -> None:
        self.jobs, self.gpus = jobs, gpus
        self.config: DictConfig | None = None
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the configuration of the multirun."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. A signal is forwarded to the running jobs, and no further job starts.

        Raises:
            SystemExit: with code 75, after a signal.
        """
        from consistency_models.errors import Exit

        free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        places = self.places()
        for place in places:
            free.put(place)
        jobs = [(i, self._folder(i), each) for i, each in enumerate(job_overrides, initial_job_idx)]
        with self._forward_signals(), ThreadPoolExecutor(len(places)) as pool:
            returns = list(pool.map(lambda job: self._run(*job, free), jobs))
        if self.stopped:
            raise SystemExit(int(Exit.STOPPED))
        return returns

    def places(self) -> list[dict[str, str]]:
        """Environment variables of each parallel job."""
        gpus = visible_gpus() if self.gpus is None else list(map(str, self.gpus))
        cores = available_cores()
        jobs = self.jobs or len(gpus) or cores
        share = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
        return [share | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(jobs)]

    def _run(
        self, number: int, folder: Path, overrides: Sequence[str], free: queue.SimpleQueue[dict[str, str]]
    ) -> JobReturn:
        from consistency_models.app.folder import RunFolder
        from consistency_models.app.multirun import state_of, was_tested
        from consistency_models.app.sweep_folder import SweepFolder
        from consistency_models.errors import Exit

        run, result = RunFolder(folder), JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
        sweep, state = SweepFolder(folder.parent), state_of(folder, list(overrides))
        # The launcher of an earlier attempt was killed, and its job ended later.
        not_noted = state == "DONE" and not sweep.is_noted(folder.name)
        not_tested = not_noted and run.read_config()["test"] and not was_tested(folder)
        if not_noted and not not_tested:
            sweep.note(folder.name, overrides, int(Exit.DONE))
        if (state != "DONE" or not_tested) and not self.stopped:
            place, began = free.get(), time.perf_counter()
            try:
                log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
                sweep.note(folder.name, overrides)
                code = self._wait_for(command(overrides, folder, state), folder, place)
            finally:
                free.put(place)  # also after an error such as a full disk: another job waits for the place
            if code < 0:  # a killed process could not mark its own folder
                name = signal.Signals(-code).name
                run.mark("FAILED", f"error: the process was killed by {name}\n")
            code = int(Exit.UNEXPECTED) if code < 0 else code
            sweep.note(folder.name, overrides, code)
            log.info("\t#%d ended after %.0f s with exit code %d", number, time.perf_counter() - began, code)
        result.return_value = run.monitored[1] if run.state == "DONE" else None
        return result

    def _folder(self, number: int) -> Path:
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.job.num = number
        return Path(str(self.config.hydra.sweep.dir)).absolute() / str(self.config.hydra.sweep.subdir)

    def _wait_for(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.log", "a") as output:
            process = subprocess.Popen(
                arguments, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.running.add(process)
            if self.stopped:
                process.terminate()
            code = process.wait()
            self.running.discard(process)
        return code

    @contextmanager
    def _forward_signals(self) -> Iterator[None]:
        def stop(number: int, frame: Any) -> None:
            if self.stopped and signal.Signals(number).name == "SIGHUP":
                return  # a closed terminal sends it twice, and a second SIGTERM would kill the jobs
            self.stopped = True
            for process in list(self.running):
                process.terminate()  # the job saves, and ends with exit code 75

        forwarded = (number for number in SIGNALS if number.name != "SIGUSR1")  # Slurm sends it to the jobs, too
        before = {number: signal.signal(number, stop) for number in forwarded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def command(overrides: Sequence[str], folder: Path, state: str | None) -> list[str]:
    """Build the command line of a job: script and flags of this process, overrides and folder of the job.

    Args:
        overrides: of the job.
        folder: of the job.
        state: see `state_of`; a job that is DONE is only tested.
    """
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_args(sys.argv[1:])
    flags = [
        f"--{name}={value}" for name in ("config-name", "config-dir") if (value := vars(args)[name.replace("-", "_")])
    ]
    quoted = QuotedString(str(folder), Quote.single).with_quotes()
    own = ["hydra.mode=RUN", f"hydra.run.dir={quoted}", *([f"ckpt_path={quoted}"] if state else [])]
    own += ["train=false"] if state == "DONE" else []
    return [sys.executable, sys.argv[0], *flags, *overrides, *own]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
