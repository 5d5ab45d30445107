"""Every sweep is held against what was published: orders that its grid can show, and a rule that errs on no side."""

from pathlib import Path

import published
import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from consistency_models.app.sweep_folder import varied
from consistency_models.evaluation.runs import Run

SWEEPS = Path(__file__).parents[2] / "sweeps"


def runs_of(name):
    """Runs of a sweep's small size; a run's figures are its number."""
    small = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["sweep"]["small"]
    lines = [f"{key}={value}" for key, value in small.items()]
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lines), None)[0]
    for i, differs in enumerate(varied(jobs)):
        results = [{"metric": "val/sw_1step", "value": float(i)}, {"metric": "val/ode_error", "value": 2.0 * i}]
        yield Run(str(i), [part.lstrip("+") for part in differs], {}, "model", results)


def test_every_sweep_is_there():
    assert published.PUBLISHED.keys() == {path.stem for path in SWEEPS.glob("*.yaml")}


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_every_order_is_between_runs_of_the_sweep(name):
    runs = list(runs_of(name))
    for order in published.PUBLISHED[name]:
        found = published.differences(runs, order)
        assert sorted(found) == ["seed=0", "seed=1", "seed=2"], order
        chosen = [run for run in runs if order.better in run.setting and set(order.where) <= set(run.setting)]
        assert sum(map(len, found.values())) == len(chosen), order


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.1, 0.11, 0.12], "reproduced: +0.11"),
        ([-0.1, -0.11, -0.12], "**not reproduced**: -0.11"),
        ([0.1, 0.11, -0.001], "too close to call: +0.0697"),
        ([0.01, 0.9, 0.01], "too close to call: +0.307"),
        ([0.1, 0.11], "no verdict: 2 seeds"),
    ],
)
def test_the_rule(differences, words):
    assert published.verdict({f"seed={i}": [each, each] for i, each in enumerate(differences)}).startswith(words)
