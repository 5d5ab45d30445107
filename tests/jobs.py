"""Jobs run in this process, as train.py runs them: compose, resolve, train."""

import re
from pathlib import Path

import hydra
import yaml
from omegaconf import OmegaConf

from consistency_models.app.checks.relations import needs_teacher
from consistency_models.app.folder import RunFolder
from consistency_models.app.run import run_job

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


def config_of(folder, *overrides):
    """The resolved configuration of a command line."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = hydra.compose("train", [f"paths.output={folder}", *overrides])
    return OmegaConf.to_container(config, resolve=True)


def run(folder, *overrides, **extra):
    """Train in `folder`; returns the exit code."""
    config = config_of(folder, *overrides)
    config["callbacks"] |= extra.get("callbacks", {})
    RunFolder(folder).write_config(config, list(overrides))
    return run_job(config, folder)[0]


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
