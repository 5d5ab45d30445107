"""Axes of a multirun: those that a configuration gives, and those that cannot be swept over."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from consistency_models.app.checks.problems import one_line, problem
from consistency_models.app.checks.table import kind_of
from consistency_models.errors import ConfigError
from consistency_models.values import accepts, describe

__all__ = ["axes_of", "is_grid", "wrong_axis"]


def is_grid(config: DictConfig) -> bool:
    """Whether a multirun has a job for each combination of values, as opposed to a search."""
    return str(config.hydra.sweeper._target_).endswith("BasicSweeper")


def axes_of(config: DictConfig) -> dict[str, Any]:
    """Return the axes that the configuration gives; for a file of sweeps/, those of the selected size.

    Raises:
        ConfigError: the file has no axes for the size, or they are no mapping.
    """
    tree, key = OmegaConf.to_container(config), "hydra.sweeper.params"
    if "sweep_size" in tree:
        size, sweep, kind = tree["sweep_size"], tree.get("sweep"), kind_of("train", "sweep_size")
        by_size = sweep if isinstance(sweep, dict) else {}
        sizes = [str(name) for name, axes in by_size.items() if accepts(kind, name) and axes]
        if not sizes:
            raise problem(
                "sweep",
                sweep,
                f"a mapping SIZE: {{KEY: VALUES}}, with a SIZE of {describe(kind)}",
                reason="no size has axes",
            )
        if size not in sizes:
            reason = f"sweeps={config.hydra.runtime.choices.sweeps} has no axes of this size"
            raise problem("sweep_size", size, ", ".join(sizes), reason=reason if accepts(kind, size) else "")
        key = f"sweep.{size}"
    try:
        params = config.hydra.sweeper.get("params")
        params = OmegaConf.to_container(params, resolve=True) if isinstance(params, DictConfig) else params
    except OmegaConfBaseException as error:
        raise problem(key, "${…}", "interpolations of keys that exist", reason=one_line(error)) from error
    if not isinstance(params, dict | None):
        raise problem(key, params, "a mapping KEY: VALUES, such as {seed: '0,1'}")
    return params or {}


def wrong_axis(override: Override, in_grid: bool) -> ConfigError | None:
    """Return the problem of an axis, or None.

    Args:
        override: with several values.
        in_grid: whether each value becomes a job, as opposed to a search.
    """
    key, text, axis = override.get_key_element(), override.get_value_string(), override.value()
    if override.is_hydra_override():
        return problem(key, text, "one value", reason="Hydra's own settings cannot be swept over")
    if key in ("sweeps", "sweep_size"):
        return problem(key, text, "one value", "start a multirun for each", reason="it chooses the axes of a multirun")
    if isinstance(axis, IntervalSweep):
        if in_grid:
            allowed = "one value, or a list a,b,c with --multirun"
            return problem(key, text, allowed, reason="an interval needs a sweeper that searches")
        low, high = axis.start, axis.end
        if low is None or high is None or not low < high or (low <= 0 and "log" in axis.tags):
            return problem(key, text, "interval(LOW, HIGH) with LOW < HIGH, and 0 < LOW with tag(log, …)")
    elif isinstance(axis, RangeSweep) and axis.step == 0:
        return problem(key, text, "range(FIRST, END, STEP) with a STEP other than 0")
    elif next(override.sweep_string_iterator(), None) is None:
        return problem(key, text, "one or more values, such as 0,1 or range(0,2)", reason="the axis has no values")
    return None
