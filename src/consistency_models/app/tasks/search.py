"""`task=search`: search the best levels of a multistep consistency sampler, one after the other.

    σ_1 = σ_max;   σ_{i+1} = argmin over σ < σ_i of metric(σ_1, …, σ_i, σ),  by ternary search on a Karras grid

The search is correct if the metric is unimodal in the next level for fixed previous levels.  (Consistency Models, arXiv
2303.01469, Sec. 3, on choosing the time points of Algorithm 1.)
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from hydra.core.hydra_config import HydraConfig

from consistency_models.app.checks.targets import fact
from consistency_models.app.commands import command
from consistency_models.app.tasks.evaluate import sample_sets
from consistency_models.app.tasks.sample_workers import Producer, index_sets, progress_bar, results_folder, samplers_of
from consistency_models.app.tasks.scoring import evaluation_of, features_divided
from consistency_models.errors import ConfigError, pasteable
from consistency_models.evaluation import combined
from consistency_models.evaluation.plots import save_search
from consistency_models.files import write_atomically
from consistency_models.noise.schedules import karras_grid
from consistency_models.sampling.generator import Generator
from consistency_models.sampling.samplers import Consistency
from consistency_models.values import Text, checked

__all__ = ["run", "ternary_search"]


def ternary_search(function: Callable[[int], float], low: int, high: int) -> int:
    """Return the integer low <= i <= high that minimises a unimodal function.

    An interval [l, r] becomes [l, m_2] if f(m_1) < f(m_2), else [m_1, r], by two calls at its thirds. At the end, the
    function is called at each remaining integer.

    Raises:
        ValueError: low > high.
    """
    if low > high:
        raise ValueError(f"need low <= high; got {low} and {high}")
    function = cache(function)
    while high - low >= 3:
        first, second = low + (high - low) // 3, high - (high - low) // 3
        if function(first) < function(second):
            high = second
        else:
            low = first
    return min(range(low, high + 1), key=function)


@checked
def run(
    config: dict[str, Any],
    generator: Generator,
    metric: Text | None,
    grid: Annotated[int, Ge(3), Le(10_000)],
    images: Annotated[int, Ge(2)],
) -> None:
    """Search the levels for `steps` calls; write search.json and search.png, and print the command for these levels."""
    wanted = max(config["steps"] or [2])
    own = samplers_of({**config, "sigmas": None, "steps": [1]}, generator)[0]
    if not isinstance(own, Consistency) or wanted < 2:
        allowed, reason = "2 or more, of a consistency sampler", f"this one is {type(own).__name__}"
        raise ConfigError("steps", [wanted], allowed, "add sampler=consistency", reason=reason)
    sets = index_sets(config, min(images, generator.config["evaluation"]["n"]))
    evaluation, trace, sigmas, names = evaluation_of(config, generator), [], [own.sigmas[0]], []
    lowest = max(own.sigma_min, generator.lowest, 0.002)
    if fact(generator.config["preconditioning"], "has_table"):
        lowest = max(lowest, generator.model.preconditioning.sigma_min)
    levels = karras_grid(grid, lowest, own.sigmas[0]).tolist()  # the ends are not searched
    trials = 2 * math.log(grid, 1.5)  # of each level: two take a third of the interval away
    calls = round(trials * sum(range(2, wanted + 1)) * sum(map(len, sets)))
    with (
        Producer(config, generator, calls) as producer,
        features_divided(evaluation, producer, config),
        progress_bar() as progress,
    ):

        def score(sampler: Consistency, what: str) -> Any:
            task = progress.add_task(what, total=sum(map(len, sets)))
            scores = []
            for indices, generated, _ in sample_sets(producer, sampler, sets, lambda n: progress.advance(task, n)):
                every = evaluation.scores(generated, generator.labels(torch.tensor(indices)), len(sampler.sigmas))
                scores.append(_chosen(every, metric))
            progress.remove_task(task)
            result = combined(scores)
            if not math.isfinite(result.value):
                raise ConfigError(
                    "task.metric", result.name, "a metric that is finite", reason=f"it is {result.value} at {what}"
                )
            return result

        while len(sigmas) < wanted:
            tried: dict[int, float] = {}

            def value(i: int, tried: dict[int, float] = tried) -> float:
                result = score(own.with_levels([*sigmas, levels[i]]), f"σ = {levels[i]:.4g}")
                tried[i], names[:] = result.value, [result.name]
                return result.value if result.is_distance else -result.value

            below = [i for i in range(1, grid - 1) if levels[i] < sigmas[-1]]
            if not below:
                reason = f"{len(sigmas)} steps end at the lowest level"
                raise ConfigError("task.grid", grid, "more points", reason=reason)
            best = ternary_search(value, below[0], below[-1])
            sigmas.append(levels[best])
            trace += [
                {"steps": len(sigmas), "sigma": levels[i], "value": x, "best": i == best} for i, x in tried.items()
            ]
    folder, (name,) = results_folder(config["run"]), names
    content = {"schema": 1, "digest": generator.origin["digest"], "weights": generator.weights, "seed": config["seed"]}
    content |= {"metric": f"eval/{name}", "grid": grid, "sigmas": sigmas, "trace": trace}
    write_atomically(folder / "search.json", json.dumps(content, indent=2) + "\n")
    save_search(folder / "search.png", trace, name)
    written = ",".join(f"{sigma:.6g}" for sigma in sigmas)
    print(f"{name}: {next(t['value'] for t in reversed(trace) if t['best']):.4g} with {len(trace)} trials, in {folder}")
    print(f"use them  {command('eval')} {pasteable('run', config['run'])} 'sigmas=[{written}]'{_typed_ways()}")


def _typed_ways() -> str:
    """Return the overrides of sampler and weights, which the levels depend on."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return "".join(f" {shlex.quote(line)}" for line in typed if re.match(r"\+*(sampler|weights)[.=]", line))


def _chosen(scores: list[Any], metric: str | None) -> Any:
    names = [score.metric for score in scores]
    if metric is not None and metric not in names:
        raise ConfigError("task.metric", metric, ", ".join(names))
    return scores[names.index(metric) if metric else 0]
