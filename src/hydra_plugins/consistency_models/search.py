"""`hydra/sweeper=search`: Optuna proposes the jobs of a multirun from the results of earlier jobs."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from consistency_models.values import Count, Size, checked

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

__all__ = ["Search"]

ConfigStore.instance().store(
    "search",
    {
        "_target_": "hydra_plugins.consistency_models.search.Search",
        "n_trials": 20,
        "direction": "minimize",
        "at_once": 1,
        "seed": 0,
        "params": None,
    },
    group="hydra/sweeper",
    provider="consistency_models",
)


class Search(Sweeper):
    """Tree-structured Parzen estimation over `a,b`, `range(…)`, `interval(…)` and `tag(log, interval(…))`.

    The study is the file optuna.db in the folder of the multirun, and a job has the number of its trial. The same
    command continues an interrupted search. The objective is the monitored metric of train.py. best.yaml holds the best
    trial so far.

    Args:
        n_trials: total number of trials.
        direction: minimize or maximize.
        at_once: trials that are proposed together, for launchers that run several jobs in parallel.
        seed: seed of the proposals.
        params: axes, as for Hydra's basic sweeper; the command line adds or overrides axes.
    """

    @checked
    def __init__(
        self,
        n_trials: Size,
        direction: Literal["minimize", "maximize"],
        at_once: Size,
        seed: Count,
        params: dict[str, Any] | None = None,
    ) -> None:
        self.n_trials, self.direction, self.at_once, self.seed = n_trials, direction, at_once, seed
        self.params = params or {}
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the configuration of the multirun, and instantiate the launcher."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search over the axes of the command and of `params`. A database that Optuna cannot use ends the command."""
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        from consistency_models.app.checks.problems import problem
        from consistency_models.app.multirun import exit_on_error
        from consistency_models.errors import Exit

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        parsed = OverridesParser.create().parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        overrides = {override.get_key_element(): override for override in parsed}  # the command line wins
        space = {key: distribution(each) for key, each in overrides.items() if each.is_sweep_override()}
        fixed = {key: each.get_value_element_as_str() for key, each in overrides.items() if key not in space}
        folder = Path(str(self.config.hydra.sweep.dir))
        with exit_on_error(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._run_trials(folder, space, fixed)
            except (optuna.exceptions.OptunaError, SQLAlchemyError) as error:
                path, fix = folder / "optuna.db", "start a new search in another folder by hydra.sweep.dir"
                reason = str(error.__cause__ or error).partition("\n")[0]  # without the SQL
                raise problem("search", path, "a database of Optuna", fix, Exit.STORAGE, reason=reason) from error

    def _run_trials(self, folder: Path, space: dict[str, BaseDistribution], fixed: dict[str, str]) -> None:
        """Propose and run trials, and pass their results to Optuna, until there are `n_trials`."""
        import optuna

        study = optuna.create_study(
            study_name="search",
            storage=f"sqlite:///{folder.absolute()}/optuna.db",
            sampler=optuna.samplers.TPESampler(seed=self.seed + len(list(folder.glob("[0-9]*")))),
            direction=self.direction,
            load_if_exists=True,
        )
        unfinished = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        batches = [[trial] for trial in unfinished]  # trials of an earlier process, whose jobs resume
        while batches or len(study.trials) < self.n_trials:
            count = min(self.at_once, self.n_trials - len(study.trials))
            trials = batches.pop(0) if batches else [study.ask(space) for _ in range(count)]
            chosen = [{key: trial.params[key] for key in space} | fixed for trial in trials]
            lines = [[f"{key}={value}" for key, value in each.items()] for each in chosen]
            for trial, result in zip(trials, self.launcher.launch(lines, initial_job_idx=trials[0].number)):
                value = result_of(result)
                failed = optuna.trial.TrialState.FAIL if value is None else None
                study.tell(trial.number, value, state=failed)
            self._note_best(folder, study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))

    def _note_best(self, folder: Path, trials: list[FrozenTrial]) -> None:
        if trials:
            sign = 1 if self.direction == "minimize" else -1
            best = min(trials, key=lambda trial: sign * trial.value)
            content = {"job": best.number, "value": best.value, "overrides": best.params}
            (folder / "best.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
            log.info("best of %d trials: job %d, %g, %s", len(trials), best.number, best.value, best.params)


def result_of(job: JobReturn) -> float | None:
    """Return the metric of a job; None if the job failed or has no finite metric."""
    value = job.return_value
    return float(value) if value is not None and math.isfinite(value) else None


def distribution(override: Override) -> BaseDistribution:
    """Convert an axis, as checked with the command, to an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    axis: Any = override.value()
    if isinstance(axis, IntervalSweep):
        return FloatDistribution(axis.start, axis.end, log="log" in axis.tags)
    upwards = isinstance(axis, RangeSweep) and axis.step > 0
    if upwards and all(float(end).is_integer() for end in (axis.start, axis.stop, axis.step)):
        return IntDistribution(int(axis.start), int(axis.stop) - 1, step=int(axis.step))
    assert isinstance(axis, ChoiceSweep | RangeSweep)
    return CategoricalDistribution(list(override.sweep_string_iterator()))
