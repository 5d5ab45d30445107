"""Jobs run in this process, as train.py runs them: compose, resolve, train. Or a script in forked processes."""

import multiprocessing
import os
import re
import runpy
import socket
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from lightning import Callback
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf, open_dict

from consistency_models.app.checks import Composer
from consistency_models.app.checks.relations import needs_teacher
from consistency_models.app.folder import RunFolder
from consistency_models.app.run import run_job
from consistency_models.storage.checkpoints import read

ROOT = Path(__file__).parents[1]
TINY = (
    "trainer=cpu",
    "logger=csv",
    "callbacks.metrics.every_n_steps=1",
    "callbacks.samples=null",
    "callbacks.validation=null",
    "callbacks.progress=null",
)
"""A training that only trains, and logs every step."""
GRADIENT_STEP = (
    "trainer.max_steps=1",
    "optimizer._target_=torch.optim.SGD",
    "optimizer.lr=1.0",
    "~optimizer.betas",
    "~optimizer.eps",
    "learning_rate.decay=0",
)
"""One step, in which the weights change by their gradient."""
TWO_PROCESSES = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


@cache
def _composer(task, searchpath):
    return Composer(task, ROOT / "conf", searchpath=searchpath)


def composed(task, *overrides):
    """The resolved configuration of a command line, as Hydra composes it; files of conf/ are read once a process."""
    composer = _composer(task, tuple(line for line in overrides if line.startswith("hydra.searchpath=")))
    config = composer.compose(composer.parse(overrides))
    with open_dict(config):
        del config["hydra"]
    return OmegaConf.to_container(config, resolve=True)


def config_of(folder, *overrides):
    """The resolved configuration of a training in a folder."""
    return composed("train", f"paths.output={folder}", *overrides)


def run(folder, *overrides, **extra):
    """Train in `folder`; returns the exit code."""
    config = config_of(folder, *overrides)
    config["callbacks"] |= extra.get("callbacks", {})
    RunFolder(folder).write_config(config, list(overrides))
    return run_job(config, folder)[0]


class Crash(Callback):
    """Fails after a step, between two saves."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def crash(step):
    """The configuration of a `Crash`, beside the other callbacks."""
    return {"crash": {"_target_": f"{__name__}.Crash", "step": step}}


def weights_of(folder):
    """The weights of the model in the last checkpoint of a run."""
    return read(folder / "checkpoints/last.ckpt")["model"]


def assert_same_weights(folder, expected, rtol=1e-6):
    """The run in `folder` has ended with the expected weights."""
    found = weights_of(folder)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-6, msg=name)


def on_points(method):
    """A network for data=mixture, for the methods of conf/ that choose a network of images."""
    return ["network=mlp"] if "override /network" in (ROOT / f"conf/model/{method}.yaml").read_text() else []


def distilling():
    """The methods of conf/ that cannot do without a teacher."""
    for file in sorted((ROOT / "conf/model").glob("*.yaml")):
        schedule = re.search(r"override /schedule: (\w+)", file.read_text())
        node = yaml.safe_load((ROOT / f"conf/schedule/{schedule[1]}.yaml").read_text()) if schedule else {}
        if needs_teacher(yaml.safe_load(file.read_text()) | {"schedule": node}):
            yield file.stem


def forkserver():
    """The context of processes that are forked from one that has imported torch, which takes six seconds less."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["consistency_models.app.run"])  # found without the sys.path of the tests
    return context


def forked(function, *arguments, environment=None):
    """Start a function in a process of `forkserver`.

    Args:
        function: of a module.
        arguments: of the function.
        environment: of the process; None: that of this one.
    """
    call = (dict(os.environ) if environment is None else environment, function, arguments)
    process = forkserver().Process(target=_called, args=call, daemon=True)
    process.start()
    return process


def _called(environment, function, arguments):
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def run_two(folder, *arguments, path=()):
    """Run train.py in two processes, as torchrun starts them.

    Args:
        folder: the run folder.
        arguments: of train.py, with trainer=ddp or trainer=fsdp on two CPUs.
        path: folders in which Python finds further packages.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    log = folder.with_suffix(".log")
    words = ("train.py", *arguments, f"hydra.run.dir={folder}")
    ranks = [environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    pair = [forked(_main, words, folder.parent, log, path, environment=rank) for rank in ranks]
    for process in pair:
        process.join(300)
    codes = [process.exitcode for process in pair]
    for process in pair:
        process.kill()
    assert codes == [0, 0], f"{codes}\n{log.read_text()}"


def command(folder, *words, **environment):
    """Exit code and output of `python WORDS` in a folder; the first word is a script of the repository."""
    with TemporaryDirectory() as place:
        log = Path(place) / "log"
        process = forked(_main, words, folder, log, environment={**os.environ, **environment})
        process.join(1200)
        process.kill()
        return process.exitcode, log.read_text()


def _main(words, folder, log, path=()):
    rank_zero_only.rank = int(os.environ.get("RANK", 0))  # Lightning reads RANK when it is imported
    os.chdir(folder)
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.path[:0] = path
    sys.argv = list(words)
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
