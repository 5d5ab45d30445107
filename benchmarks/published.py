"""Report of finished sweeps of published ablations, compared with the published orders.

    python benchmarks/published.py runs/ict_depth/DATE_TIME runs/cd_solver/DATE_TIME ...

Writes docs/results/sweeps.md and one figure for each sweep: the results of each cell, and a verdict on each order that
the paper states, by this rule:

    Two settings are compared in pairs of runs that agree in everything else, including the seed. The difference of a
    seed is the mean over its pairs. An order is reproduced if every seed agrees with it and the mean difference is
    above twice its standard error. It is not reproduced if every seed contradicts it and the mean difference is below
    minus twice its standard error. Otherwise it is too close to call. Distances are those of samples with the fewest
    network calls; lower is better. With fewer than three seeds there is no verdict.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from consistency_models.evaluation.plots import save_quality
from consistency_models.evaluation.runs import Cell, Run, cells_of, read_runs

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results"
RULE = [line.strip() for line in __doc__.partition("by this rule:\n\n")[2].splitlines()]
RECIPES = ("recipe={s0:2,s1:150}", "recipe={s0:10,s1:1280}")
SAMPLES, ODE = "samples", "ODE error"
DOUBLING = {f"model.segments={2 * s}": f"model.segments={s}" for s in (1, 2, 4)}
GROWING, EVEN = "curriculum={s0:16,s1:128}", [f"curriculum={{s0:{n},s1:{n}}}" for n in (16, 32, 128)]


@dataclass(frozen=True)
class Order:
    """A published order: one setting is better than another.

    Args:
        better: an override of the sweep.
        worse: the override that replaces `better` in the other setting.
        where: further overrides of both settings.
        by: SAMPLES, the metric of the samples with the fewest network calls, or ODE.
    """

    better: str
    worse: str
    where: tuple[str, ...] = ()
    by: str = SAMPLES

    def __str__(self) -> str:
        where = f", {' '.join(self.where)}" if self.where else ""
        return f"`{self.better}` better than `{self.worse}`{where}" + (f" ({self.by})" if self.by != SAMPLES else "")


PUBLISHED: dict[str, list[Order]] = {
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
        Order(f"curriculum.N={10 * 2 ** (k + 1) + 1}", f"curriculum.N={10 * 2**k + 1}") for k in range(7)
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
        Order("weighting=inverse_gap", "weighting=uniform"),
        Order("network={embedding:{scale:0.02},dropout:0.0}", "network={embedding:{scale:16.0},dropout:0.0}"),
        Order("network={embedding:{scale:0.02},dropout:0.3}", "network={embedding:{scale:0.02},dropout:0.0}"),
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
"""Orders that the comments of sweeps/*.yaml state as published, if the small size can show them."""


def measured(run: Run, by: str) -> float:
    """Return the metric of a run's samples with the fewest network calls, or the run's ODE error."""
    values = {result["metric"]: result["value"] for result in run.results}
    return values["val/ode_error"] if by == ODE else next(iter(values.values()))


def differences(runs: Sequence[Run], order: Order) -> dict[str, list[float]]:
    """Return seed -> differences worse - better of all pairs of runs; a difference above 0 agrees with the order."""
    settings = {frozenset(run.setting): run for run in runs}
    by_seed: dict[str, list[float]] = {}
    for setting, run in settings.items():
        if order.better not in setting or not setting.issuperset(order.where):
            continue
        other = settings.get(setting - {order.better} | {order.worse})
        if other is not None:
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


def chapter(path: Path, out: Path) -> Iterator[str]:
    """Yield the Markdown lines of one sweep: question, figure in `out`, cells and verdicts."""
    name = path.resolve().parent.name
    runs = read_runs([path])
    cells = cells_of(runs)
    question = [line[2:] for line in (ROOT / f"sweeps/{name}.yaml").read_text().splitlines()[1:] if line[:2] == "# "]
    yield from ("", f"## {name}", "", *(f"> {line}" for line in question if not line.startswith("  ")), "")
    yield f"    python train.py sweeps={name}"
    yield ""
    figure = out / "sweeps" / f"{name}.png"
    save_quality(figure, {cell.name: cell.results for cell in cells})
    yield f"![quality against network calls](sweeps/{name}.png)"
    yield from ("", *table(cells), "", "| published | here: difference of the means |", "|---|---|")
    yield from (f"| {order} | {verdict(differences(list(runs.values()), order))} |" for order in PUBLISHED[name])


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a Markdown table with mean and standard deviation over the seeds, for each metric of each cell."""
    names = list(dict.fromkeys(each["metric"] for cell in cells for each in cell.results if shown(each["metric"])))
    yield "| " + " | ".join(["", *(name.removeprefix("val/") for name in names), "seeds"]) + " |"
    yield "|---" * (len(names) + 2) + "|"
    for cell in cells:
        values = {each["metric"]: each for each in cell.results}
        shows = [f"{v['value']:.4g} ± {v['spread']:.1g}" if (v := values.get(name)) else "" for name in names]
        yield f"| `{cell.name}` | {' | '.join(shows)} | {len(cell.runs)} |"


def shown(metric: str) -> bool:
    """Whether the table shows a metric: metrics of samples, and the ODE error."""
    return metric in ("val/ode_error", "val/ode_error_median") or metric.endswith("step")


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path, help="folders of finished sweeps")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to; by default docs/results")
    args = parser.parse_args()
    (args.out / "sweeps").mkdir(parents=True, exist_ok=True)
    lines = ["# The published ablations, at the size of a CPU", "", "This command writes this page:", ""]
    lines += ["    python benchmarks/published.py runs/*/*", "", *RULE, ""]
    lines += [f"{date.today()}, {platform.machine()}, torch {torch.__version__}. Discussion: [sweeps](../sweeps.md)."]
    for folder in sorted(args.folders, key=lambda path: list(PUBLISHED).index(path.resolve().parent.name)):
        lines += chapter(folder, args.out)
    (args.out / "sweeps.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
