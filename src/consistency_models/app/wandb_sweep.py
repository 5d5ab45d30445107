"""`python -m consistency_models.app.wandb_sweep OVERRIDE… > sweep.yaml`: convert a multirun to a sweep for W&B agents.

The overrides are those of train.py -m, including sweeps=NAME. `wandb sweep sweep.yaml` and `wandb agent …` run the jobs
on any number of machines. With intervals, W&B searches by Bayesian optimisation of --metric.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import IntervalSweep

from consistency_models.app.checks import Composer, check
from consistency_models.app.checks.axes import axes_of
from consistency_models.errors import Exit, command

__all__ = ["main", "sweep_of"]


def sweep_of(overrides: Sequence[str], root: Path, metric: str | None, goal: str) -> dict[str, Any]:
    """Return the description of a W&B sweep for the multirun of these overrides.

    Args:
        overrides: as for train.py -m.
        root: the folder with train.py and conf/.
        metric: the logged name of the metric that a search optimises: val/…
        goal: minimize or maximize.

    Raises:
        ConfigError: as in train.py.
    """
    os.environ.setdefault("PROJECT_ROOT", str(root))
    composer = Composer("train", root / "conf")
    parsed = composer.parse(overrides)
    searching = any(override.is_interval_sweep() for override in parsed)
    settled = [str(override.input_line) for override in parsed if not override.is_interval_sweep()]
    check("train", composer, settled, multirun=True)
    config = composer.compose([override for override in parsed if not override.is_sweep_override()])
    params = [f"{key}={value}" for key, value in axes_of(config).items()]
    every = {each.get_key_element(): each for each in [*composer.parse(params), *parsed]}
    axes = {key: _axis(each) for key, each in every.items() if each.is_sweep_override()}
    fixed = [f"{key}={each.get_value_element_as_str()}" for key, each in every.items() if key not in axes]
    asked = {"metric": {"name": metric, "goal": goal}} if metric else {}
    return {
        "program": "train.py",
        "method": "bayes" if searching else "grid",
        **asked,
        "parameters": axes,
        "command": ["${env}", "${interpreter}", "${program}", *fixed, "${args_no_hyphens}", "hydra.mode=RUN"],
    }


def _axis(override: Any) -> dict[str, Any]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        law = "log_uniform_values" if "log" in value.tags else "uniform"
        return {"distribution": law, "min": value.start, "max": value.end}
    return {"values": list(override.sweep_string_iterator())}


@command
def main(arguments: Sequence[str] | None = None) -> Exit:
    """Print the sweep of the overrides of the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consistency_models.app.wandb_sweep", description=__doc__)
    parser.add_argument("overrides", nargs="+", metavar="OVERRIDE")
    parser.add_argument("--metric", help="metric of a search, such as val/fd1797_classifier_train_1step")
    parser.add_argument("--goal", default="minimize", choices=("minimize", "maximize"))
    parser.add_argument("--root", type=Path, default=Path(), help="folder with train.py; by default the current folder")
    given = parser.parse_args(arguments)
    sweep = sweep_of(given.overrides, given.root.absolute(), given.metric, given.goal)
    print(yaml.safe_dump(sweep, sort_keys=False), end="")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
