"""The exact bench with hardly any training: what it writes, and what it concludes from numbers that are given."""

import json

import exact_bench
import exact_report
import pytest
import torch
from PIL import Image

POINTS = 64


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    methods = ("CD", "MCM, S = 2", "Direct CM")
    return folder, [
        row for i, m in enumerate(methods) for row in exact_bench.run(folder / str(i), "mixture", m, 2, 0, POINTS)
    ]


def test_a_row_for_each_number_of_steps_with_its_cost(rows):
    found = {(row["method"], row["steps"]): row for row in rows[1]}
    assert list(found) == [("CD", 1), ("CD", 2), ("MCM, S = 2", 2), ("Direct CM", 1), ("Direct CM", 2)]
    assert [row["nfe"] for row in found.values()] == [1, 2, 2, 1, 2]
    assert [row["network_calls_per_image"] for row in found.values()] == [2, 2, 2, 1, 1]
    assert found["CD", 1]["teacher_calls_per_image"] == found["MCM, S = 2", 2]["teacher_calls_per_image"] == 2
    assert 16 < found["Direct CM", 1]["teacher_calls_per_image"] < 20
    assert [("ode_error" in row) for row in found.values()] == [True, False, True, True, False]
    assert all(0 < row["sw"] < 2 for row in found.values())
    assert all(0.1 < row["ode_error"] < 2 for row in found.values() if "ode_error" in row)


def test_a_finished_run_is_measured_again_but_not_trained_again(rows, monkeypatch):
    folder, found = rows
    monkeypatch.setattr(exact_bench, "run_job", None)
    assert exact_bench.run(folder / "0", "mixture", "CD", 2, 0, POINTS) == found[:2]
    with pytest.raises(TypeError):  # as many steps as before, or the run is trained
        exact_bench.run(folder / "2", "mixture", "Direct CM", 3, 0, POINTS)


def test_tcm_continues_ect_and_leaves_low_levels_to_it(tmp_path):
    ect, *_ = exact_bench.run(tmp_path / "ect", "mixture", "ECT", 2, 0, POINTS)
    tcm, *_ = exact_bench.run(tmp_path / "tcm", "mixture", "TCM", 2, 0, POINTS, tmp_path / "ect")
    own = json.loads((tmp_path / "tcm" / "summary.json").read_text())["train_cpu_seconds"]
    assert tcm["train_cpu_seconds"] == own + ect["train_cpu_seconds"]
    assert min(own, ect["train_cpu_seconds"]) > 0
    first, second = (exact_bench.load(tmp_path / name) for name in ("ect", "tcm"))
    x = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    for level, generator in ((0.9, first), (1.1, second)):
        sigma = torch.full((5,), level)
        assert torch.equal(exact_report.solver(second, 1)(x, sigma), generator.solver(1)(x, sigma))


def test_fresh_data_are_nearer_to_the_data_than_what_has_not_been_trained(rows):
    fresh = exact_bench.floor("mixture", 0, POINTS)
    assert all(fresh["sw"] < row["sw"] / 2 for row in rows[1])


def test_picture(rows):
    folder, _ = rows
    source, _, _ = exact_bench.truth("mixture", POINTS)
    exact_report.picture(folder / "p.png", source, {"MCM": exact_bench.load(folder / "1")}, {"MCM": 2}, levels=4)
    with Image.open(folder / "p.png") as image:
        assert image.width > 500
        assert len(image.getcolors(1 << 20)) > 50


def test_orders_are_judged_seed_by_seed():
    def row(method, seed, sw, ode_error):
        return {"data": "mixture", "method": method, "steps": 1, "seed": seed, "sw": sw, "ode_error": ode_error}

    rows = [
        row("CD", 0, 0.3, 0.3),
        row("CD", 1, 0.5, 0.4),
        row("Direct CM", 0, 0.2, 0.2),
        row("Direct CM", 1, 0.6, 0.1),
    ]
    rows += [row("CT", seed, 0.9, 0.9) for seed in (0, 1)] + [row("iCT", seed, 1.0, 1.0) for seed in (0, 1)]
    text = exact_report.table(rows, "# Heading")
    assert "| Direct CM has a lower ODE error than CD | ODE error, rms | yes: 0.15 against 0.35 |" in text
    assert "| Direct CM has worse samples than CD | sliced Wasserstein | in 1 of 2 seeds: 0.4 against 0.4 |" in text
    assert "| iCT beats CT | sliced Wasserstein | no: 1 against 0.9 |" in text
    assert "| MCM in 2 steps beats MCM in 1 | sliced Wasserstein |  |" in text
    assert "| CD | 1 | 0.35 ± 0.07 |" in text


@pytest.mark.slow
def test_command(tmp_path):
    few = ["--steps", "2", "--seeds", "2", "--points", "32", "--jobs", "2", "--data", "mixture_16d"]
    exact_bench.main([*few, "--methods", "iCT", "CT", "--folder", str(tmp_path)])
    rows = json.loads((tmp_path / "exact.json").read_text())
    assert {(row["method"], row["seed"]) for row in rows} == {
        (m, s) for m in ("iCT", "CT", "fresh data") for s in (0, 1)
    }
    assert "| iCT beats CT | sliced Wasserstein | " in (tmp_path / "exact.md").read_text()
    assert (tmp_path / "exact_mixture_16d.png").stat().st_size > 10_000
