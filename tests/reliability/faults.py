"""Faults for tests: a callback that spoils one step of a training, on the processes that it is told to."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import torch
from jobs import config_of, forked
from lightning import Callback
from torch import nn

from consistency_models.app.folder import RunFolder
from consistency_models.app.job import main
from consistency_models.callbacks import micro_batches


class Spoiled(nn.Module):
    """A teacher whose first answer has NaN in one place."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, *inputs):
        denoised = self.teacher(*inputs).clone()
        denoised[0] = float("nan")
        return denoised


class Fault(Callback):
    """Spoils what is told of the steps, counted from 1.

    Args:
        what: data, teacher, loss, gradient (of this process, before the processes share theirs), weights (before the
            step), signal (SIGTERM to this process), or disk (from then on no file may grow beyond `value` bytes).
        steps: when.
        rank: on which process; None on all.
        value: what numbers become; of disk, a size.
    """

    def __init__(self, what, steps, rank=None, value="nan"):
        self.what, self.steps, self.rank, self.value = what, steps, rank, float(value)

    def applies(self, trainer):
        return trainer.global_step + 1 in self.steps and self.rank in (None, trainer.global_rank)

    def on_train_batch_start(self, trainer, method, batch, index):
        self.weighting, self.teacher = method.weighting, method._teacher
        if not self.applies(trainer):
            return
        if self.what == "data":
            batch.images[0] = self.value
        elif self.what == "teacher":
            method._teacher = (Spoiled(method._teacher[0]),)
        elif self.what == "loss":
            method.weighting = lambda levels: torch.full_like(levels.high, self.value)
        elif self.what == "weights":
            next(method.model.parameters()).data.fill_(self.value)
        elif self.what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.what == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(self.value), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def on_after_backward(self, trainer, method):
        if self.applies(trainer) and self.what == "gradient":
            next(method.model.parameters()).grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer, method, *_):
        method.weighting, method._teacher = self.weighting, self.teacher


class Scarce(Callback):
    """So many bytes are free on each process, by its rank, and no bound says that a step fits."""

    def __init__(self, free):
        def setup(trainer):
            micro_batches.available_bytes = lambda device: free[trainer.global_rank]

        micro_batches.FEW, self.setup_with = 0, setup

    def setup(self, trainer, *_, **__):
        self.setup_with(trainer)


def fault(what, steps, **more):
    """The configuration of a `Fault`, beside the other callbacks."""
    return {"fault": {"_target_": f"{__name__}.Fault", "what": what, "steps": list(steps), **more}}


def job(folder, *arguments, callbacks=None, processes=1):
    """Exit code and error output of a run in processes of its own, none of which outlives it."""
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2") if processes == 2 else ()
    arguments = [argument for argument in arguments if not (two and argument == "trainer=cpu")]
    config = config_of(folder, *arguments, *two)
    config["callbacks"] |= callbacks or {}
    RunFolder(folder).write_config(config, arguments)
    if processes == 1:
        reader, writer = multiprocessing.Pipe(duplex=False)  # a fault may forbid to write files
        alone = forked(_job, folder, writer)
        writer.close()
        with open(os.dup(reader.fileno())) as file:
            error = file.read()
        alone.join(300)
        return alone.exitcode, error
    command = [sys.executable, "-m", "consistency_models.app.job", "--job", str(folder), str(os.getpid())]
    own = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    paths = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    job = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    error = job.communicate(timeout=300)[1]  # ends when the last process has closed it
    return job.returncode, error


def _job(folder, error):
    os.dup2(error.fileno(), sys.stderr.fileno())
    error.close()
    sys.argv = ["job.py", "--job", str(folder), str(os.getppid())]
    sys.exit(main())
