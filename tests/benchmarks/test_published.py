"""Every sweep is held against what was published: orders that its grid can show, and a rule that errs on no side."""

import json
import os
from pathlib import Path

import published
import pytest
import sweep_costs
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from orders import PUBLISHED, SIZES, Order, differences, verdict

from consistency_models.app.sweep_folder import varied
from consistency_models.evaluation.runs import Run

SWEEPS = Path(__file__).parents[2] / "sweeps"


def runs_of(name, size):
    """Runs of all commands of a sweep's size; a run's figures are its number."""
    grid = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["sweep"][size]
    lines = [f"{key}={value}" for key, value in grid.items()]
    jobs = []
    for words in sweep_costs.commands(name, size):
        overrides = OverridesParser.create().parse_overrides([*lines, *words])
        last = {
            each.get_key_element(): each.input_line for each in overrides if not each.key_or_group.endswith(".path")
        }
        overrides = OverridesParser.create().parse_overrides(list(last.values()))
        jobs += BasicSweeper.split_arguments(overrides, None)[0]
    for i, differs in enumerate(varied(jobs)):
        results = [{"metric": "val/sw_1step", "value": float(i)}, {"metric": "val/ode_error", "value": 2.0 * i}]
        yield Run(str(i), [part.lstrip("+") for part in differs], {}, "model", results)


def test_every_sweep_is_there():
    assert PUBLISHED.keys() == {path.stem for path in SWEEPS.glob("*.yaml")}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_order_is_between_runs_of_the_sweep(name, size):
    orders = [order.at(size) for order in PUBLISHED[name] if size in order.sizes]
    runs = list(runs_of(name, size)) if orders else []
    for order in orders:
        found = differences(runs, order)
        assert sorted(found) == ["seed=0", "seed=1", "seed=2"], order
        chosen = [run for run in runs if set(" ".join([order.better, *order.where]).split()) <= set(run.setting)]
        assert sum(map(len, found.values())) == len(chosen), order


def test_stored_results_know_their_orders():
    """A renamed override would turn a verdict into "not run yet" without a word."""
    for file in (published.OUT / "sweeps").glob("*.json"):
        sweep, _, size = file.stem.rpartition("_")
        known = {str(order.at(size)) for order in PUBLISHED[sweep] if size in order.sizes}
        assert set(json.loads(file.read_text())["verdicts"]) <= known, file.name


def test_a_sweep_has_the_days_and_versions_of_its_runs(tmp_path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    jobs = {tmp_path / str(i): run for i, run in enumerate([next(runs_of("ict_depth", "digits"))] * 3)}
    for i, job in enumerate(jobs):
        job.mkdir()
        (job / "summary.json").write_text(json.dumps({"versions": {"torch": f"2.{i % 2}"}}))
        os.utime(job / "summary.json", (86_400 * (i + 1.5),) * 2)
    monkeypatch.setattr(published, "cells_of", lambda runs: [])
    monkeypatch.setattr(published, "save_quality", lambda *_: None)
    published.store("ict_depth", "digits", jobs, tmp_path)
    content = json.loads((tmp_path / "sweeps/ict_depth_digits.json").read_text())
    assert (content["date"], content["torch"]) == ("1970-01-02 to 1970-01-04", "2.0 and 2.1")


def test_the_page_is_that_of_the_stored_results():
    assert (published.OUT / "sweeps.md").read_text() == published.page(published.OUT)


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
    assert verdict({f"seed={i}": [each, each] for i, each in enumerate(differences)}).startswith(words)


def test_where_an_order_holds():
    order = Order("loss=a", "loss=b")
    for small, digits, where in (
        ("reproduced: +1", "reproduced: +1", "both"),
        ("reproduced: +1", "**not reproduced**: -1", "mixture"),
        ("too close to call: +1", "reproduced: +1", "digits"),
        ("too close to call: +1", "**not reproduced**: -1", "none"),
        ("reproduced: +1", "no verdict: 2 seeds", "mixture; digits open"),
    ):
        results = {size: {"verdicts": {str(order): words}} for size, words in (("small", small), ("digits", digits))}
        assert published.holds_in(order, results) == where
    assert published.holds_in(order, {}) == "mixture and digits open"


def test_the_cost_is_steps_times_seconds(monkeypatch):
    asked = []
    monkeypatch.setattr(sweep_costs, "step_seconds", lambda overrides, *_: asked.append(overrides) or 0.1)
    lines = list(sweep_costs.cost_table(["ict_depth"], "RUN"))
    minutes = (800 * 0.1 + sweep_costs.REST) / 60
    assert f"| ict_depth | 6 | {minutes:.1f} | {6 * minutes:.0f} |" in lines
    assert len(asked) == 2  # seeds cost the same, blocks do not
