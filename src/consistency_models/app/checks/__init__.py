"""Checks of a command before heavy imports, before a folder is created and before a device is used."""

from __future__ import annotations

import importlib.util
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from consistency_models.app.checks.axes import is_grid
from consistency_models.app.checks.composing import Composer, leaves, resolved
from consistency_models.app.checks.job import check_job, wrong
from consistency_models.app.checks.problems import ConfigErrors, problem
from consistency_models.app.checks.resume import continued
from consistency_models.devices import cpu_threads
from consistency_models.errors import ConfigError

__all__ = ["check", "check_command", "config_to_plan"]

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK")
"""Numbers that torchrun and srun set. Lightning reads all but SLURM_NTASKS when it is imported."""


def check_command(task: str, conf_dir: str | Path, arguments: Namespace) -> list[str]:
    """Compose and check the configuration of every job of a command.

    Args:
        task: "train" or "eval".
        conf_dir: the folder of configurations.
        arguments: the command line, parsed by Hydra.

    Returns:
        The arguments for Hydra: the same, or the arguments that resume a run.

    Raises:
        ConfigError: the command has problems; one line for each.
    """
    reason = "torchrun and srun set this variable to a number"
    wrong_ranks = [
        problem(name, os.environ[name], "a whole number >= 0", f"remove it with: unset {name}", reason=reason)
        for name in RANKS
        if not os.environ.get(name, "0").isdecimal()
    ]
    if wrong_ranks:
        raise ConfigErrors(wrong_ranks)
    cpu_threads(1)  # raises an error for OMP_NUM_THREADS
    if arguments.config_path is not None:
        raise problem("--config-path", arguments.config_path, "not given", "add configurations with --config-dir")
    if arguments.experimental_rerun is not None:
        raise problem("--experimental-rerun", arguments.experimental_rerun, "not given", "use ckpt_path=FOLDER")
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise problem("--config-dir", arguments.config_dir, "a folder that exists")
    if arguments.config_dir is not None:
        _check_names(Path(arguments.config_dir), Path(conf_dir))
    composer = _composer(task, conf_dir, arguments)
    overrides = check(task, composer, arguments.overrides, arguments.multirun)
    flags = ["--multirun"] if arguments.multirun else []
    for name in ("config_name", "config_dir"):
        if getattr(arguments, name) is not None:
            flags += [f"--{name.replace('_', '-')}", getattr(arguments, name)]
    return [*flags, *overrides]


def _check_names(folder: Path, conf_dir: Path) -> None:
    """Refuse options of a user's folder that have the name of one in conf/ or sweeps/, which Hydra finds first.

    Raises:
        ConfigError: the first such file.
    """
    for path in sorted(folder.glob("*/*.yaml")):
        if any((parent / path.relative_to(folder)).is_file() for parent in (conf_dir, conf_dir.parent)):
            reason = "the project has a file of this name, which would be used in its place"
            raise problem("--config-dir", path, "files with names of their own", "rename it", reason=reason)


def config_to_plan(conf_dir: str | Path, arguments: Namespace) -> dict[str, Any] | None:
    """Return the resolved configuration of a train.py command with `plan=true`; None for other commands."""
    if arguments.multirun or not any(line.lstrip("+").startswith("plan=") for line in arguments.overrides):
        return None
    composer = _composer("train", conf_dir, arguments)
    overrides = composer.parse(arguments.overrides)
    config, _ = resolved(_with_root(composer, composer.compose(overrides), overrides))
    return config if config["plan"] else None


def _composer(task: str, conf_dir: str | Path, arguments: Namespace) -> Composer:
    """Return the composer of the command's folders of configurations."""
    searchpath = [override for override in arguments.overrides if override.startswith("hydra.searchpath=")]
    return Composer(arguments.config_name or task, conf_dir, arguments.config_dir, searchpath)


def _with_root(composer: Composer, config: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A plan reads no images: if data.root is not given, the current folder takes its place."""
    if config.get("plan") and OmegaConf.is_missing(config.data, "root"):
        return composer.compose([*overrides, *composer.parse(["data.root=."])])
    return config


def check(task: str, composer: Composer, lines: Sequence[str], multirun: bool = False) -> list[str]:
    """Check the overrides of a command; return them, or the overrides that resume a run.

    Raises:
        ConfigError: jobs have problems; one line for each.
    """
    if task == "eval" and not any(line.startswith("data=") for line in lines):  # a new path of the run's data
        lines = [f"+{line}" if line.startswith("data.root=") else line for line in lines]
    overrides = composer.parse(lines)
    if task == "train" and not multirun and (merged := continued(composer, overrides)) is not None:
        overrides = merged
    fixed = [override for override in overrides if not override.is_sweep_override()]
    config = composer.compose(fixed)
    if multirun or config.hydra.mode == RunMode.MULTIRUN:
        if config.get("plan"):
            reason = "the plan is that of one run, and this command has several jobs"
            raise problem("plan", True, "false", "leave out --multirun and sweeps=, and choose one cell", reason=reason)
        _check_plugins(config)
        _check_jobs(task, composer, composer.cells(overrides, config), is_grid(config))
    else:
        job = config if fixed == overrides else composer.compose(overrides)
        check_job(composer, task, _with_root(composer, job, overrides))
    return [str(override.input_line) for override in overrides]


def _check_plugins(config: DictConfig) -> None:
    """Check the settings of the launcher and sweeper of this project."""
    problems = []
    for part in ("launcher", "sweeper"):
        plugin = OmegaConf.to_container(config.hydra[part])
        if str(plugin["_target_"]).startswith("hydra_plugins.consistency_models."):
            tree = {"hydra": {part: plugin}}
            problems += [one for path, _ in leaves(tree) for one in wrong("train", tree, path, [])]
        if str(plugin["_target_"]).endswith(".Search") and importlib.util.find_spec("optuna") is None:
            fix = 'install it with pip install -e ".[sweeps]"'
            reason = "the package optuna is not installed"
            problems.append(problem("hydra/sweeper", "search", "another sweeper", fix, reason=reason))
    if problems:
        raise ConfigErrors(problems)


def _check_jobs(task: str, composer: Composer, jobs: list[list[Override]], with_folders: bool) -> None:
    """Check the jobs of a grid, each with its folder, or the ends of a search, which are no jobs with a folder."""
    by_message: dict[str, list[tuple[int, ConfigError]]] = {}
    for number, overrides in enumerate(jobs):
        try:
            typed = [str(override.input_line) for override in overrides if not override.is_hydra_override()]
            check_job(composer, task, composer.compose(overrides), number if with_folders else None, typed)
        except ConfigErrors as error:
            for one in error.problems:
                by_message.setdefault(str(one), []).append((number, one))
    if by_message:
        raise ConfigErrors([_of_jobs(same, jobs) for same in by_message.values()])


def _of_jobs(same: list[tuple[int, ConfigError]], jobs: list[list[Override]]) -> ConfigError:
    """Merge the same problem of several jobs, and name the first job."""
    number, error = same[0]
    if len(same) == len(jobs):
        return error
    first = " ".join(str(override.input_line) for override in jobs[number])
    where = f"(in {len(same)} of {len(jobs)} jobs; the first is {first})"
    fix = f"{error.fix} {where}".strip()
    return problem(error.key, error.value, error.allowed, fix, error.code, reason=error.reason)
