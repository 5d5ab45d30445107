"""Tables and pictures of the results of the exact bench."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from consistency_models.data import Mixture
from consistency_models.evaluation.ode_error import ODEError
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import load

__all__ = ["picture", "solver", "table"]

Row = Mapping[str, Any]
MEASURES = {
    "ode_error": "ODE error, rms",
    "ode_error_median": "ODE error, median",
    "sw": "sliced Wasserstein",
    "energy": "energy distance",
}
CPU = "train_cpu_seconds"  # other processes of a machine raise CPU time, so the minimum of all runs counts
COSTS = {
    "nfe": "calls a sample",
    "network_calls_per_image": "network calls",
    "teacher_calls_per_image": "teacher calls",
    CPU: "training, CPU s",
}
ORDERS = (  # text, measure, better and worse method with its sampling steps
    ("iCT beats CT", "sw", ("iCT", 1), ("CT", 1)),
    ("iCT beats CT whose N(k) fits the budget", "sw", ("iCT", 1), ("CT, N(k) up to 21", 1)),
    ("CD beats CT", "sw", ("CD", 1), ("CT", 1)),
    ("CD beats CT whose N(k) fits the budget", "sw", ("CD", 1), ("CT, N(k) up to 21", 1)),
    *(
        (f"MCM in {2 * S} steps beats MCM in {S}", measure, (f"MCM, S = {2 * S}", 2 * S), (f"MCM, S = {S}", S))
        for measure in ("sw", "ode_error")
        for S in (1, 2, 4)
    ),
    ("Direct CM has a lower ODE error than CD", "ode_error", ("Direct CM", 1), ("CD", 1)),
    ("Direct CM has worse samples than CD", "sw", ("CD", 1), ("Direct CM", 1)),
    ("sCT beats iCT", "sw", ("sCT", 1), ("iCT", 1)),
    ("sCT beats ECT", "sw", ("sCT", 1), ("ECT", 1)),
    ("sCD beats CD", "sw", ("sCD", 1), ("CD", 1)),
    ("TCM beats ECT, its first stage", "sw", ("TCM", 1), ("ECT", 1)),
    ("MeanFlow beats iCT", "sw", ("MeanFlow", 1), ("iCT", 1)),
    ("MeanFlow beats IMM", "sw", ("MeanFlow", 1), ("IMM", 1)),
    ("MeanFlow beats Shortcut", "sw", ("MeanFlow", 1), ("Shortcut", 1)),
    ("α-Flow beats MeanFlow", "sw", ("α-Flow", 1), ("MeanFlow", 1)),
    ("FACM beats MeanFlow", "sw", ("FACM", 1), ("MeanFlow", 1)),
    ("AYF in 2 steps beats AYF in 1", "sw", ("AYF", 2), ("AYF", 1)),
    ("AYF in 4 steps beats AYF in 2", "sw", ("AYF", 4), ("AYF", 2)),
    ("AYF in 2 steps beats sCD in 2", "sw", ("AYF", 2), ("sCD", 2)),
    ("AYF, with a teacher, beats MeanFlow (not published)", "sw", ("AYF", 1), ("MeanFlow", 1)),
)


def table(rows: Sequence[Row], heading: str) -> str:
    """Format the results as Markdown: a picture and a table for each data set, and verdicts on published orders."""
    names, lines = list(dict.fromkeys(row["data"] for row in rows)), [heading]
    columns = MEASURES | COSTS
    for data in names:
        lines += ["", f"## {data}", "", f"![samples and trajectories](exact_{data}.png)", ""]
        lines += _lines("method", "steps", *columns.values())
        for method, steps in dict.fromkeys((row["method"], row["steps"]) for row in rows if row["data"] == data):
            same = [row for row in rows if (row["data"], row["method"], row["steps"]) == (data, method, steps)]
            lines.append(_line(method, steps or "", *(_spread(same, column) for column in columns)))
    lines += ["", "## Which published orders appear", ""]
    lines += _lines("order", "in", *names, "CPU time of the first over that of the second")
    for text, measure, *pair in ORDERS:
        verdicts = (_verdict(rows, data, measure, *pair) for data in names)
        lines.append(_line(text, MEASURES[measure], *verdicts, _ratio(rows, *pair)))
    return "\n".join(lines) + "\n"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _lines(*titles: str) -> list[str]:
    return [_line(*titles), "|---" * len(titles) + "|"]


def _spread(rows: Sequence[Row], column: str) -> str:
    """Format the mean over seeds, and the standard deviation if the column is a measure; of CPU seconds the minimum."""
    values = [row[column] for row in rows if column in row]
    if not values:
        return ""
    if column == CPU:
        return f"{min(values):.3g}"
    deviation = f" ± {statistics.stdev(values):.1g}" if column in MEASURES and len(values) > 1 else ""
    return f"{statistics.fmean(values):.3g}{deviation}"


def _values(rows: Sequence[Row], method: str, steps: int, column: str) -> dict[tuple[str, int], float]:
    """Return the values of one method: (data, seed) -> value."""
    selected = [row for row in rows if (row["method"], row["steps"]) == (method, steps) and column in row]
    return {(row["data"], row["seed"]): row[column] for row in selected}


def _verdict(rows: Sequence[Row], data: str, measure: str, better: tuple[str, int], worse: tuple[str, int]) -> str:
    """Compare two methods seed by seed; yes or no if all seeds agree."""
    rows = [row for row in rows if row["data"] == data]
    first, second = (_values(rows, *each, measure) for each in (better, worse))
    wins = [first[key] < second[key] for key in first if key in second]
    if not wins:
        return ""
    answer = "yes" if all(wins) else "no" if not any(wins) else f"in {sum(wins)} of {len(wins)} seeds"
    return f"{answer}: {statistics.fmean(first.values()):.3g} against {statistics.fmean(second.values()):.3g}"


def _ratio(rows: Sequence[Row], first: tuple[str, int], second: tuple[str, int]) -> str:
    """Format the ratio of the CPU seconds of two methods."""
    seconds = [_values(rows, *each, CPU).values() for each in (first, second)]
    return f"{min(seconds[0]) / min(seconds[1]):.2g}" if all(seconds) else ""


def solver(generator: Generator, steps: int) -> Callable[..., torch.Tensor]:
    """Return `(x, sigma, labels) -> x` at the end of the ODE. Levels below TCM's transition use its first stage."""
    own = generator.solver(steps)
    if not generator.lowest:
        return own
    first = load(generator.config["teacher"]["path"]).solver(steps)
    return lambda x, sigma, labels=None: (own if sigma[0] >= generator.lowest else first)(x, sigma, labels)


def picture(
    path: Path, source: Mixture, models: Mapping[str, Generator], steps: Mapping[str, int], levels: int = 40
) -> None:
    """Draw samples of each model, and its outputs for the points of true trajectories.

    The outputs of an exact model are one point for each trajectory. For data of more than two dimensions, the first two
    are drawn. `levels` is the number of points of each trajectory.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sigmas = torch.logspace(-1.7, 1.9, levels, dtype=torch.float64).tolist()
    exact = ODEError(lambda x, s, to, labels: source.consistency(x, s, to), source.images[:16], sigmas=sigmas)
    end, *trajectory = exact.trajectory
    panels = {"data, and true trajectories": (source.images[:1500], torch.stack([end, *trajectory]))}
    for name, generator in models.items():
        n = steps[name]
        solve = solver(generator, n)
        ends = torch.stack([solve(x, x.new_full(x.shape[:1], level)) for x, level in zip(trajectory, sigmas)])
        title = f"{name}: {n} step{'s' * (n > 1)}"
        panels[title] = generator.sample(1500, steps=n, batch_size=1500), ends
    height = -(-len(panels) // 4)
    figure = Figure(figsize=(14, 3.6 * height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    reach = 1.2 * source.images[:, :2].abs().max().item()
    axes = figure.subplots(height, 4, sharex=True, sharey=True, squeeze=False).flat
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, (points, paths)) in zip(axes, panels.items()):
        axis.scatter(*points.flatten(1)[:, :2].T.numpy(), s=3, color="C0", alpha=0.3, linewidths=0)
        for trajectory_path in paths.flatten(2).transpose(0, 1):
            axis.plot(*trajectory_path[:, :2].T.numpy(), color="C1", linewidth=0.8)
        axis.scatter(*end.flatten(1)[:, :2].T.numpy(), s=10, color="black", zorder=3)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    figure.savefig(path)
