"""Grids, curricula and the decays that follow them, against official code and closed forms."""

import json

import pytest
import torch
from parity.golden import RUNS, SUFFIX, cases, constants, expect, load
from torch.testing import assert_close

from consistency_models.losses import weightings
from consistency_models.noise import curricula, schedules


@pytest.mark.parametrize(("path", "i", "suffix"), cases(rf"sigmas_(\d+){SUFFIX}", r"args_\d+"))
def test_karras_grid(path, i, suffix):
    case, run = load(path), RUNS[suffix]
    n, *arguments = case[f"args_{i}"].tolist()
    expected = case[f"sigmas_{i}{run['suffix']}"]
    grid = schedules.karras_grid(int(n), *arguments).to(run["dtype"]).flip(0)
    assert_close(torch.cat([grid, grid.new_zeros(1)]), expected, rtol=run["rtol"], atol=run["atol"])


@pytest.mark.parametrize(("path", "tag"), cases(r"(karras[^/]*)", r"meta_json"))
def test_karras_grid_of_edm(path, tag):
    case = load(path)
    arguments = dict(case["meta"][tag])
    grid = schedules.karras_grid(arguments.pop("num_steps"), **arguments).flip(0)
    assert_close(torch.cat([grid, grid.new_zeros(1)]), case[tag], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("path", "N", "end", "suffix"), cases(rf"cm_(\d+)_(t|t2){SUFFIX}"))
def test_neighbours_of_consistency_training(path, N, end, suffix):
    case, run, fixed = load(path), RUNS[suffix], constants(path)
    schedule = schedules.KarrasUniform(curricula.Constant(int(N)), fixed["sigma_min"], fixed["sigma_max"], fixed["rho"])
    grid = schedule.grid(int(N)).flip(0).to(run["dtype"])
    expected = case[f"cm_{N}_{end}{run['suffix']}"]
    assert_close(grid[:-1] if end == "t" else grid[1:], expected, rtol=run["rtol"], atol=0)


@pytest.mark.parametrize(("path", "N"), cases(r"p_(\d+)", r"sigmas_\d+", r"weight_\d+"))
def test_improved_consistency_training_draws_and_weighs(path, N):
    case, fixed = load(path), constants(path)
    schedule = schedules.KarrasLogNormal(
        curricula.Constant(int(N)), fixed["sigma_min"], fixed["sigma_max"], fixed["rho"]
    )
    grid = schedule.grid(int(N))
    expect(grid, case, f"sigmas_{N}", rtol=1e-12, atol=0)
    expect(schedule.probabilities(int(N)), case, f"p_{N}", rtol=1e-10, atol=0)
    levels = schedules.Levels(high=grid[1:], low=grid[:-1])
    expect(weightings.InverseGap()(levels), case, f"weight_{N}", rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", cases(r"curriculum_K_k_N"))
def test_doubling(path):
    rows = load(path)["curriculum_K_k_N"].tolist()
    assert [curricula.Doubling(10, 1280)(k, K) for K, k, _ in rows] == [N for _, _, N in rows]


def _target_ema_and_scales():
    """The official function's settings for consistency models: progressive distillation is another method."""
    for case in cases(r"cfg_(\d+)", r"ema_\d+", r"scales_\d+"):
        path, i = case.values
        if json.loads(load(path)[f"cfg_{i}"]).get("scale_mode", "fixed") != "progdist":
            yield case


@pytest.mark.parametrize(("path", "i"), list(_target_ema_and_scales()))
def test_curriculum_and_decay(path, i):
    case = load(path)
    setting = json.loads(case[f"cfg_{i}"])
    s0, s1, K = setting["start_scales"], setting["end_scales"], setting["total_steps"]
    curriculum = {"fixed": lambda: curricula.Constant(s0), "progressive": lambda: curricula.Progressive(s0, s1)}
    N = curriculum[setting.get("scale_mode", "fixed")]()
    decay = {"fixed": curricula.ConstantDecay, "adaptive": lambda mu: curricula.AdaptiveDecay(mu, N)}
    mu = decay[setting["target_ema_mode"]](setting["start_ema"])
    steps = case[f"steps_{i}"].tolist()
    assert [N(k, K) for k in steps] == case[f"scales_{i}"].tolist()
    expect(torch.tensor([mu(k, K) for k in steps], dtype=torch.float64), case, f"ema_{i}", rtol=1e-12, atol=0)
