"""Figures of results: what is drawn, and what cannot be."""

import pytest
from matplotlib.figure import Figure

from consistency_models.evaluation import plots


def results(metric, *points, sampler="Consistency", features="identity"):
    common = {"sampler": sampler, "features": features, "spread": 0.1}
    return [{"metric": f"eval/{metric}_{n}step", "nfe": n, "value": value, **common} for n, value in points]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (figures.append(self), save(self, path)))
    return figures


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_metric_is_a_panel_and_a_run_a_line(tmp_path, drawn):
    runs = {
        "a": [*results("fd9_x_train", (4, 1.0), (1, 3.0)), *results("kd9_x_train", (1, 2.0))],
        "b": [*results("fd9_x_train", (35, 0.5), sampler="Heun"), *results("pr9_x_train", (1, None), (2, 0.5))],
    }
    plots.save_quality(tmp_path / "new" / "quality.png", runs)
    (figure,) = drawn
    assert [axis.get_title() for axis in figure.axes] == ["fd9_x_train", "kd9_x_train", "pr9_x_train"]
    assert legend(figure) == ["a, Consistency", "b, Heun", "b, Consistency"]  # also of runs that the first panel lacks
    first = figure.axes[0].lines[0]
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([1, 4], [3.0, 1.0])
    assert (tmp_path / "new/quality.png").stat().st_size


@pytest.mark.parametrize("length", [5, 45, 75])
def test_the_legend_fits_into_the_figure(length, tmp_path, drawn):
    metrics = [*results("fd9_x_train", (1, 3.0)), *results("kd9_x_train", (1, 2.0))]
    label = "weighting=uniform network={embedding:{scale:16.0},dropout:0.0}, model.segments=1 loss.c=0.03"
    plots.save_quality(tmp_path / "quality.png", {run + label[:length]: metrics for run in "abcd"})
    (figure,) = drawn
    assert figure.legends[0].get_window_extent().width < figure.bbox.width


def test_the_ode_error_has_a_line_for_each_run_and_measure(tmp_path, drawn):
    curve = {"steps": 1, "reference": "exact", "sigmas": [0.1, 1.0, 10.0]}
    curve |= {"rms": [0.1, 0.2, 0.3], "median": [0.05, 0.1, 0.2], "self_consistency": [0.01, 0.02]}
    plots.save_ode_error(tmp_path / "ode_error.png", {"a": [curve], "b": [curve, curve | {"steps": 2}]})
    (figure,) = drawn
    assert [len(axis.lines) for axis in figure.axes] == [6, 3]
    assert list(figure.axes[1].lines[0].get_xdata()) == [1.0, 10.0]
    assert len(legend(figure)) == 6


def test_what_was_chosen_is_marked(tmp_path, drawn):
    trace = [
        {"steps": steps, "sigma": sigma, "value": (sigma - best) ** 2, "best": sigma == best}
        for steps, best in ((2, 1.0), (3, 0.5))
        for sigma in (2.0, 0.5, 1.0)
    ]
    plots.save_search(tmp_path / "search.png", trace, "fd9_x_train_3step")
    axis = drawn[0].axes[0]
    assert list(axis.lines[0].get_xdata()) == [0.5, 1.0, 2.0]
    assert [list(line.get_xdata()) for line in axis.lines[1::2]] == [[1.0], [0.5]]


@pytest.mark.parametrize(
    ("save", "runs"),
    [
        (plots.save_quality, {}),
        (plots.save_quality, {"a": results("fd9_x_train", (1, None))}),
        (plots.save_ode_error, {"a": []}),
    ],
)
def test_nothing_to_draw_is_told(save, runs, tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        save(tmp_path / "x.png", runs)
    assert not list(tmp_path.iterdir())


def test_a_family_is_the_name_without_steps():
    assert plots.family("eval/fd9_x_train_12step") == plots.family("fd9_x_train") == "fd9_x_train"
