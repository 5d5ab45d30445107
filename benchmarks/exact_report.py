"""Tables and pictures of the results of the exact bench."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from consistency_models.data import Mixture
from consistency_models.evaluation.ode_error import ODEError
from consistency_models.sampling.generator import Generator

__all__ = ["picture", "table"]

Row = Mapping[str, Any]
MEASURES = {
    "ode_error": "ODE error, rms",
    "ode_error_median": "ODE error, median",
    "sw": "sliced Wasserstein",
    "energy": "energy distance",
}
COSTS = {
    "nfe": "calls a sample",
    "network_calls_per_image": "network calls",
    "teacher_calls_per_image": "teacher calls",
    "train_seconds": "training, s",
}
ORDERS = (  # published orders of results in one step or in S steps: text, measure, better method, worse method
    ("iCT beats CT", "sw", "iCT", "CT"),
    ("iCT beats CT whose N(k) fits the budget", "sw", "iCT", "CT, N(k) up to 21"),
    ("CD beats CT", "sw", "CD", "CT"),
    ("CD beats CT whose N(k) fits the budget", "sw", "CD", "CT, N(k) up to 21"),
    *(
        (f"MCM in {2 * S} steps beats MCM in {S}", measure, f"MCM, S = {2 * S}", f"MCM, S = {S}")
        for measure in ("sw", "ode_error")
        for S in (1, 2, 4)
    ),
    ("Direct CM has a lower ODE error than CD", "ode_error", "Direct CM", "CD"),
    ("Direct CM has worse samples than CD", "sw", "CD", "Direct CM"),
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
    lines += ["", "## Which published orders appear", "", *_lines("order", "in", *names)]
    for text, measure, better, worse in ORDERS:
        lines.append(_line(text, MEASURES[measure], *(_verdict(rows, data, measure, better, worse) for data in names)))
    return "\n".join(lines) + "\n"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _lines(*titles: str) -> list[str]:
    return [_line(*titles), "|---" * len(titles) + "|"]


def _spread(rows: Sequence[Row], column: str) -> str:
    """Format the mean over seeds, and the standard deviation if the column is a measure."""
    values = [row[column] for row in rows if column in row]
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1g}" if column in MEASURES and len(values) > 1 else ""
    return f"{statistics.fmean(values):.3g}{deviation}"


def _verdict(rows: Sequence[Row], data: str, measure: str, better: str, worse: str) -> str:
    """Compare two methods seed by seed; yes or no if all seeds agree."""
    selected = [row for row in rows if row["data"] == data and "ode_error" in row]
    first, second = ({r["seed"]: r[measure] for r in selected if r["method"] == name} for name in (better, worse))
    wins = [first[seed] < second[seed] for seed in first if seed in second]
    if not wins:
        return ""
    answer = "yes" if all(wins) else "no" if not any(wins) else f"in {sum(wins)} of {len(wins)} seeds"
    return f"{answer}: {statistics.fmean(first.values()):.3g} against {statistics.fmean(second.values()):.3g}"


def picture(path: Path, source: Mixture, models: Mapping[str, Generator], steps: Mapping[str, int]) -> None:
    """Draw samples of each model, and its outputs for the points of true trajectories.

    The outputs of an exact model are one point for each trajectory. For data of more than two dimensions, the first two
    are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = torch.logspace(-1.7, 1.9, 40, dtype=torch.float64).tolist()
    exact = ODEError(lambda x, s, to, labels: source.consistency(x, s, to), source.images[:16], sigmas=levels)
    end, *trajectory = exact.trajectory
    panels = {"data, and true trajectories": (source.images[:1500], torch.stack([end, *trajectory]))}
    for name, generator in models.items():
        n = steps[name]
        descend = generator.make_sampler(steps=n).descend
        ends = torch.stack([descend(generator.model, x, level) for x, level in zip(trajectory, levels)])
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
