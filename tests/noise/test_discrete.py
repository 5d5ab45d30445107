"""Levels of a table: the timestep of a level, scalings at the ends, grids, and what is refused."""

import pytest
import torch
from torch.testing import assert_close

from consistency_models.errors import ConfigError
from consistency_models.noise import Discrete, Preconditioned, TableUniform
from consistency_models.random import BatchRandom
from consistency_models.sampling import DDIM, LCM, Consistency


def test_the_timestep_of_a_level():
    table = Discrete()
    k = torch.arange(1000)
    assert_close(table.timestep(table.sigmas.float()), k.float(), rtol=0, atol=0)
    halfway = (table.sigmas[:-1] * table.sigmas[1:]).sqrt()
    assert_close(table.timestep(halfway), k[:-1] + 0.5, rtol=0, atol=1e-9, check_dtype=False)
    assert table.timestep(torch.tensor([0.0, 1e-5, 15.0, 1e6])).tolist() == [0, 0, 999, 999]


def test_its_derivative():
    """A level that is snapped to a whole number has the derivative of its neighbourhood, for methods that need one."""
    table = Discrete()
    sigma = table.sigmas[[300, 700]]
    _, derivative = torch.func.jvp(table.timestep, (sigma,), (torch.ones_like(sigma),))
    above = table.sigmas[[301, 701]]
    assert_close(derivative, 1 / (sigma * (above / sigma).log()), rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_consistency_function_is_the_identity_at_zero(prediction):
    """CD on Direct CM's grid calls f at level 0."""
    scalings = Discrete(prediction_type=prediction, boundary=10.0)
    model = Preconditioned(lambda x, k, labels, augment: x.sin(), scalings)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    assert_close(model(x, 0.0), x, rtol=0, atol=0)
    lowest = scalings.sigma_min
    assert_close(model(x, lowest), x / (1 + lowest**2) ** 0.5, rtol=1e-12, atol=0)


def test_without_a_boundary_it_is_a_denoiser():
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    for prediction in ("epsilon", "v_prediction"):
        model = Preconditioned(lambda x, k, labels, augment: x.sin(), Discrete(prediction_type=prediction))
        assert_close(model(x, 0.0), x, rtol=0, atol=0)
    model = Preconditioned(lambda x, k, labels, augment: x * 0 + 2, Discrete(prediction_type="sample"))
    assert_close(model(x, 3.0), torch.full_like(x, 2.0), rtol=0, atol=0)


def test_the_grids():
    table = Discrete()
    lcm = TableUniform(table, 50)
    assert_close(lcm.grid(51), table.sigmas[[0, *range(19, 1000, 20)]], rtol=0, atol=0)
    direct = TableUniform(table, 100, "zero").grid(101)
    assert direct[0] == 0
    assert_close(direct[1:], table.sigmas[9::10], rtol=0, atol=0)
    levels = lcm(BatchRandom(0, 3, 5000, slice(0, 5000)), 3, 10)
    assert torch.equal(levels.high, lcm.grid(51)[levels.index + 1].float())
    counts = torch.bincount(levels.index, minlength=50)
    assert len(counts) == 50
    assert (counts - 100).abs().max() < 50  # five standard deviations


def test_named_tables_and_lists():
    table = Discrete("linear", 1e-4, 0.02)
    betas = torch.linspace(1e-4, 0.02, 1000).tolist()
    assert torch.equal(Discrete(betas).table, table.table)
    assert table.sigma_max == pytest.approx(157.4, abs=0.05)
    assert Discrete("squaredcos_cap_v2").sigma_max == pytest.approx(20291, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discrete("flow"), "beta_schedule"),
        (lambda: Discrete([0.5]), "beta_schedule"),
        (lambda: Discrete([0.5, 1.0]), "beta_schedule"),
        (lambda: Discrete(beta_end=1.5), "beta_end"),
        (lambda: Discrete(num_train_timesteps=20_000), "num_train_timesteps"),
        (lambda: Discrete(prediction_type="flow_prediction"), "prediction_type"),
        (lambda: Discrete(boundary=0.0), "boundary"),
        (lambda: TableUniform(Discrete(), 600), "at most 500 with 1000 levels"),
        (lambda: TableUniform(Discrete(), 50, "last"), "lowest"),
        (lambda: LCM(51, Discrete()), "at most 50"),
        (lambda: LCM(4, Discrete(), 50, strength=0.05), "at most 2, which is original_steps 50 times strength 0.05"),
        (lambda: LCM(1, Discrete(), 2000), "at most 1000"),
        (lambda: DDIM(1001, Discrete()), "at most 1000"),
        (lambda: DDIM(1000, Discrete(), offset=1), "beyond the 1000 levels"),
        (lambda: DDIM(10, Discrete(), "trailing", offset=1), "offset must be 0"),
        (lambda: DDIM(10, Discrete(), "linspace"), "spacing"),
    ],
)
def test_refused(make, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        make()


def test_where_a_trajectory_starts():
    """LCM's at z = n; other levels of the same model, too, where it is asked for."""
    noise, levels = torch.ones(1, 1, 2, 2), []
    for sampler in (LCM(1, Discrete()), Consistency([14.0], 0.0, unit_variance=True), Consistency([14.0], 0.0)):
        sampler(lambda x, sigma: levels.append(x[0, 0, 0, 0].item()) or x, noise, None)
    assert levels == pytest.approx([(1 + Discrete().sigma_max ** 2) ** 0.5, 197**0.5, 14.0])


@pytest.mark.parametrize(("final", "offset", "calls"), [("zero", 0, 4), ("first", 1, 4), ("first", 0, 3)])
def test_ddim_counts_its_calls(final, offset, calls):
    """With offset 0 and final "first" the last level is the end: there is no step from it."""
    sampler, levels = DDIM(4, Discrete(), offset=offset, final=final), []
    sampler(lambda x, sigma: levels.append(sigma[0].item()) or x, torch.ones(1, 1, 2, 2), None)
    assert len(levels) == sampler.nfe == calls
