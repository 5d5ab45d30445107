"""Figures of results: quality against network calls, training curves, ODE error over noise levels, level searches."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistency_models.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["family", "save_curves", "save_ode_error", "save_quality", "save_search"]

INK, QUIET, LINE = "#202124", "#5f6368", "#dadce0"


def family(metric: str) -> str:
    """Strip prefix and sampling steps of a metric: eval/fd1797_classifier_train_1step -> fd1797_classifier_train."""
    return re.sub(r"_\d+step$", "", metric.removeprefix("eval/").removeprefix("val/"))


def save_quality(path: str | Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Save a PNG of each metric against the number of network calls, with a line for each run and sampler.

    Args:
        path: file to write; its folder is created.
        runs: name -> `results` of evaluation.json. Distances to the ODE's solution have their own figure. Results that
            are not finite are left out.

    Raises:
        ValueError: no run has a finite result.
    """
    lines: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for run, results in runs.items():
        for result in results:
            if result["value"] is not None and result["features"] is not None:
                label = f"{run}, {result['sampler']}"
                panel = lines.setdefault(family(result["metric"]), {})
                panel.setdefault(label, []).append((result["nfe"], result["value"], result["spread"] or 0.0))
    if not lines:
        raise ValueError("there is nothing to plot: no result with a finite value")
    labels = dict.fromkeys(name for each in lines.values() for name in each)
    styles = {label: _line_style(i) for i, label in enumerate(labels)}
    figure, axes = _panels(len(lines))
    for axis, (metric, panel) in zip(axes, lines.items()):
        for label, points in panel.items():
            calls, values, spreads = zip(*sorted(points))
            axis.errorbar(calls, values, spreads, label=label, ms=4, capsize=3, lw=1.2, **styles[label])
        ticks = sorted({point[0] for points in panel.values() for point in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        _style(axis, metric, "network calls per image", metric.split("_")[0])
    _save(figure, axes, path)


def save_curves(
    path: str | Path,
    runs: Mapping[str, Sequence[Mapping[str, Sequence[tuple[float, float]]]]],
    over: str = "images seen",
) -> None:
    """Save a PNG of each logged value over training: mean over the seeds, and a band of one standard deviation.

    A panel whose means are positive and span more than a factor of ten has a logarithmic axis.

    Args:
        path: file to write; its folder is created.
        runs: name -> for each seed: logged name -> (position in training, value).
        over: label of the position in training.

    Raises:
        ValueError: no run has logged a value.
    """
    names = list(dict.fromkeys(name for seeds in runs.values() for curves in seeds for name in curves))
    if not names:
        raise ValueError("there is nothing to plot: no run has logged anything")
    figure, axes = _panels(len(names))
    for axis, name in zip(axes, names):
        means: list[float] = []
        for i, (run, seeds) in enumerate(runs.items()):
            values: dict[float, list[float]] = {}
            for place, value in (point for curves in seeds for point in curves.get(name, ())):
                values.setdefault(place, []).append(value)
            if not values:
                continue
            places = sorted(values)
            mean = [statistics.fmean(values[place]) for place in places]
            means += mean
            spread = [statistics.stdev(values[place]) if len(values[place]) > 1 else 0.0 for place in places]
            style = _line_style(i) | ({} if len(places) < 20 else {"marker": None})
            axis.plot(places, mean, lw=1.2, ms=4, label=run, **style)
            low, high = ([m + sign * s for m, s in zip(mean, spread)] for sign in (-1, 1))
            axis.fill_between(places, low, high, color=f"C{i}", alpha=0.2, lw=0)
        if 0 < 10 * min(means, default=0) < max(means, default=0):
            axis.set_yscale("log")
        _style(axis, name, over, "")
    _save(figure, axes, path)


def save_ode_error(path: str | Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Save a PNG over the noise level: rms and median distance to the true solution, and between neighbouring levels.

    Args:
        path: file to write; its folder is created.
        runs: name -> `ode_error` of evaluation.json.

    Raises:
        ValueError: no run has an ODE error.
    """
    curves = [(f"{run}, {error['steps']}-step", error) for run, errors in runs.items() for error in errors]
    if not curves:
        raise ValueError("there is nothing to plot: no run has an ODE error")
    figure, (distance, consistency) = _panels(2)
    for i, (label, curve) in enumerate(curves):
        sigmas, reference = curve["sigmas"], curve["reference"]
        style = {"ms": 3, "lw": 1.2, **_line_style(i), "ls": "-"}
        distance.plot(sigmas, curve["rms"], label=f"{label}, rms ({reference})", **style)
        distance.plot(sigmas, curve["median"], label=f"{label}, median", **style | {"ls": "--"})
        consistency.plot(sigmas[1:], curve["self_consistency"], **style)
    for axis in (distance, consistency):
        axis.set(xscale="log", yscale="log")
    _style(distance, "distance to the true solution of the ODE", "σ", "‖f - f*‖ / (√d·σ_data)")
    _style(consistency, "self-consistency along true trajectories (rms)", "σ, against the next lower level", "")
    _save(figure, [distance], path)


def save_search(path: str | Path, trace: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Save a PNG of the metric over the searched level, for each step count.

    Args:
        path: file to write; its folder is created.
        trace: {"steps", "sigma", "value", "best": whether the search chose this level} of every tried level.
        metric: name of the metric.
    """
    figure, (axis,) = _panels(1)
    for i, steps in enumerate(dict.fromkeys(tried["steps"] for tried in trace)):
        points = sorted((tried["sigma"], tried["value"]) for tried in trace if tried["steps"] == steps)
        best = [(tried["sigma"], tried["value"]) for tried in trace if tried["steps"] == steps and tried["best"]]
        axis.plot(*zip(*points), color=f"C{i}", marker="o", ms=3, lw=1, label=f"{steps} steps: last level")
        axis.plot(*zip(*best), color=f"C{i}", marker="*", ms=12, ls="", label=f"chosen: {best[0][0]:.3g}")
    axis.set_xscale("log")
    _style(axis, f"{metric}, by ternary search", "σ of the last call", metric.split("_")[0])
    _save(figure, [axis], path)


def _line_style(i: int) -> dict[str, str]:
    """Style of the i-th curve: ten colours, then the same colours with another marker and line."""
    return {"color": f"C{i}", "marker": "os^D"[i // 10 % 4], "ls": ("-", "--", ":", "-.")[i // 10 % 4]}


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.2 * rows + 0.5), dpi=150, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _style(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(printable(title), fontsize=10, color=INK, parse_math=False)
    axis.set_xlabel(x, fontsize=9, color=QUIET)
    axis.set_ylabel(printable(y), fontsize=9, color=QUIET, parse_math=False)
    axis.tick_params(which="both", labelsize=8, colors=QUIET, length=2)
    axis.grid(color=LINE, linewidth=0.5)
    axis.spines[:].set_color(LINE)


def _save(figure: Figure, axes: Sequence[Axes], path: str | Path) -> None:
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    longest = max(map(len, named), default=0)
    ncols = 2 if longest < 6 * figure.get_figwidth() else 1  # an inch has 12 characters of this size
    labels = [printable(name) for name in named]
    legend = figure.legend(named.values(), labels, loc="outside lower center", ncols=ncols, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in the name of a run
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
