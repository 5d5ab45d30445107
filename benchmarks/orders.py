"""Published orders of settings, as far as the sweeps of the sizes `small` and `digits` can show them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from consistency_models.evaluation.runs import Run

__all__ = ["ODE", "PUBLISHED", "SAMPLES", "SIZES", "Order", "differences", "verdict"]

SIZES = {"small": "mixture", "digits": "digits"}
"""Sizes of a sweep that a CPU can train -> their data."""

SAMPLES, ODE = "samples", "ODE error"
IN_DIGITS = {
    "recipe={s0:2,s1:150}": "recipe={s0:2,s1:20}",
    "recipe={s0:10,s1:1280}": "recipe={s0:10,s1:80}",
    "loss.c=0.00076": "loss.c=0.00432",
    "teacher=exact": "teacher=run",
    "teacher=none": "teacher=none init=run",
    "network.depth=6": "network.num_blocks=2",
    "network.depth=3": "network.num_blocks=1",
}
"""Overrides of the size small -> overrides with the same role in the size digits."""


@dataclass(frozen=True)
class Order:
    """A published order: one setting is better than another.

    Args:
        better: overrides of the size small, separated by spaces.
        worse: the overrides that replace `better` in the other setting.
        where: further overrides of both settings.
        by: SAMPLES, the metric of the samples with the fewest network calls, or ODE.
        sizes: the sizes of the sweep that have both settings.
    """

    better: str
    worse: str
    where: tuple[str, ...] = ()
    by: str = SAMPLES
    sizes: tuple[str, ...] = tuple(SIZES)

    def at(self, size: str) -> Order:
        """Return the order with the overrides of a size."""
        if size == "small":
            return self
        better, worse, *where = (
            " ".join(IN_DIGITS.get(each, each) for each in words.split())
            for words in (self.better, self.worse, *self.where)
        )
        return replace(self, better=better, worse=worse, where=tuple(where))

    def __str__(self) -> str:
        where = f", {' '.join(self.where)}" if self.where else ""
        return f"`{self.better}` better than `{self.worse}`{where}" + (f" ({self.by})" if self.by != SAMPLES else "")


RECIPES = ("recipe={s0:2,s1:150}", "recipe={s0:10,s1:1280}")
DOUBLING = {f"model.segments={2 * s}": f"model.segments={s}" for s in (1, 2, 4)}
GROWING, EVEN = "curriculum={s0:16,s1:128}", [f"curriculum={{s0:{n},s1:{n}}}" for n in (16, 32, 128)]

PUBLISHED: dict[str, list[Order]] = {
    "methods": [
        Order("model=ict", "model=ct"),
        Order("model=cd teacher=exact", "model=ct"),
        Order("model=ict", "model=cd teacher=exact"),
    ],
    "cd_solver": [
        *(Order("solver=heun", "solver=euler", (f"curriculum.N={n}",)) for n in (9, 18, 36, 80)),
        *(Order("curriculum.N=18", f"curriculum.N={n}", ("solver=heun",)) for n in (9, 36, 80)),
    ],
    "ict_teacher_ema": [
        Order("model.target_ema.initial=0.0", "model.target_ema.initial=0.9", (loss,))
        for loss in ("loss=l2", "loss=pseudo_huber")
    ],
    "ict_distance": [Order("loss=pseudo_huber", "loss=l2", (recipe,)) for recipe in RECIPES],
    "ict_pseudo_huber_c": [
        Order("loss.c=0.00076", other, (recipe,)) for recipe in RECIPES for other in ("loss.c=0.0", "loss.c=1.0")
    ],
    "ict_constant_n": [
        *(Order(f"curriculum.N={20 * 2**k + 1}", f"curriculum.N={10 * 2**k + 1}") for k in range(5)),
        *(
            Order(f"curriculum.N={20 * 2**k + 1}", f"curriculum.N={10 * 2**k + 1}", sizes=("small",))
            for k in range(5, 7)
        ),
    ],
    "ict_curriculum": [
        Order("curriculum=doubling", f"curriculum={other}")
        for other in ("constant", "progressive", "linear", "square", "cosine")
    ],
    "ict_noise_law": [
        Order("schedule=karras_lognormal", "schedule=karras_uniform", (loss,))
        for loss in ("loss=pseudo_huber", "loss=l2")
    ],
    "ict_components": [
        Order(better, worse, sizes=("digits",))
        for better, worse in (
            ("weighting=inverse_gap", "weighting=uniform"),
            ("network={embedding:{scale:0.02},dropout:0.0}", "network={embedding:{scale:16.0},dropout:0.0}"),
            ("network={embedding:{scale:0.02},dropout:0.3}", "network={embedding:{scale:0.02},dropout:0.0}"),
        )
    ],
    "ict_depth": [Order("network.depth=6", "network.depth=3")],
    "mcm_steps": [
        *(Order(*each, (kind,)) for kind in ("teacher=none", "teacher=exact") for each in DOUBLING.items()),
        *(Order("teacher=exact", "teacher=none", (f"model.segments={s}",)) for s in (1, 2, 4)),
    ],
    "mcm_annealing": [Order(GROWING, other, (f"model.segments={segments}",)) for segments in (1, 4) for other in EVEN],
    "mcm_teacher_sampler": [
        *(Order("solver=euler", "solver=addim", (f"model.segments={s}",)) for s in (1, 2)),
        *(Order("solver=addim", "solver=euler", (f"model.segments={s}",)) for s in (4, 8)),
    ],
    **{
        sweep: [Order("model=dcm", "model=cd", (s,), ODE) for s in ("solver=euler", "solver=heun")]
        + [Order("model=cd", "model=dcm", (s,)) for s in ("solver=euler", "solver=heun")]
        for sweep in ("dcm_equal_steps", "dcm_equal_calls")
    },
}
"""Orders that the comments of sweeps/*.yaml state as published, if the small sizes can show them."""


def measured(run: Run, by: str) -> float:
    """Return the metric of a run's samples with the fewest network calls, or the run's ODE error."""
    values = {result["metric"]: result["value"] for result in run.results}
    return values["val/ode_error"] if by == ODE else next(iter(values.values()))


def differences(runs: Sequence[Run], order: Order) -> dict[str, list[float]]:
    """Return seed -> differences worse - better of all pairs of runs; a difference above 0 agrees with the order."""
    settings = {frozenset(run.setting): run for run in runs}
    better, worse, where = (set(words.split()) for words in (order.better, order.worse, " ".join(order.where)))
    by_seed: dict[str, list[float]] = {}
    for setting, run in settings.items():
        other = settings.get(setting - better | worse)
        if other is not None and setting >= better | where:
            (seed,) = (override for override in setting if override.startswith("seed="))
            by_seed.setdefault(seed, []).append(measured(other, order.by) - measured(run, order.by))
    return by_seed


def verdict(by_seed: Mapping[str, Sequence[float]]) -> str:
    """Format the verdict in words, with the mean difference, its standard error and the number of seeds."""
    means = [statistics.mean(each) for each in by_seed.values()]
    if len(means) < 3:
        return f"no verdict: {len(means)} seeds"
    mean, error = statistics.mean(means), statistics.stdev(means) / len(means) ** 0.5
    clear = abs(mean) > 2 * error and all(each * mean > 0 for each in means)
    words = "too close to call" if not clear else "reproduced" if mean > 0 else "**not reproduced**"
    return f"{words}: {mean:+.3g} ± {error:.2g}, {len(means)} seeds"
