"""Averages of the weights: the update, and what every family of decays promises and means."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from consistency_models.optim import ema
from consistency_models.optim.ema import Constant, HalfLife, PowerFunction, ema_update

FAMILIES = [getattr(ema, name) for name in ema.__all__ if inspect.isclass(getattr(ema, name))]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_update_is_the_weighted_mean_in_place(decay, dtype):
    shapes = [(3, 2), (5,), ()]
    targets = [torch.randn(shape, dtype=dtype) for shape in shapes]
    sources = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    expected = [decay * t + (1 - decay) * s.detach() for t, s in zip(targets, sources)]
    held = [s.detach().clone() for s in sources]
    pointers = [t.data_ptr() for t in targets]
    ema_update(targets, sources, decay)
    assert_close(targets, expected)
    assert [t.data_ptr() for t in targets] == pointers
    assert not any(t.requires_grad for t in targets)
    assert all(torch.equal(s, h) for s, h in zip(sources, held))


def test_decay_0_copies_to_the_last_bit_and_over_what_is_not_finite():
    targets, sources = [torch.tensor([math.nan, math.inf, 1e30])], [torch.tensor([0.1, 0.2, 0.3])]
    ema_update(targets, sources, 0.0)
    assert torch.equal(targets[0], sources[0])
    assert targets[0] is not sources[0]


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_update_refuses_a_decay_without_meaning(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\]"):
        ema_update([torch.ones(1)], [torch.ones(1)], decay)


@pytest.mark.parametrize("make", FAMILIES)
def test_a_family_has_a_decay_for_each_name_at_every_step(make):
    family = make()
    assert len(set(family.names)) == len(family.names) >= 1
    assert all(isinstance(name, str) and name for name in family.names)
    for step in (0, 1, 10, 1000, 1_000_000):
        decays = family.decays(step, 512)
        assert len(decays) == len(family.names)
        assert all(isinstance(decay, float) and 0 <= decay < 1 for decay in decays)
        assert family.decays(step, 512) == decays


def test_names():
    assert Constant((0.999, 0.9999, 0.9999432189950708)).names == ["0.999", "0.9999", "0.9999432189950708"]
    assert HalfLife().names == ["halflife_0.5M"]
    assert PowerFunction().names == ["power_0.05", "power_0.1"]


def test_constant_is_constant():
    assert Constant((0.9, 0.99)).decays(7, 64) == [0.9, 0.99]


def test_half_life_is_one():
    """After `images` images, half of what was is left."""
    assert math.isclose(HalfLife(512_000, ramp=None).decays(3, 512)[0] ** 1000, 0.5)
    assert math.isclose(
        HalfLife(50e6, None).decays(0, 4096)[0], 0.9999432189950708, rel_tol=1e-12
    )  # the published rate


def test_half_life_ramps_up():
    family = HalfLife(500_000, ramp=0.05)
    assert family.decays(0, 512) == [0.0]
    assert math.isclose(family.decays(1000, 512)[0], 0.5 ** (1 / 50))
    assert family.decays(10**6, 512) == HalfLife(500_000, None).decays(10**6, 512)


def _profile(family, steps):
    """The weight of each step in the average after so many steps, one column for each name."""
    decays = torch.tensor([family.decays(step, 1) for step in range(steps)], dtype=torch.float64)
    later = torch.cat([decays[1:], torch.ones_like(decays[:1])]).flip(0).cumprod(0).flip(0)
    return (1 - decays) * later


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 12**-0.5])
def test_power_function_has_the_width_that_it_is_named_after(std):
    weight = _profile(PowerFunction((std,)), 20_000)[:, 0]
    assert math.isclose(weight.sum(), 1, rel_tol=1e-9)
    t = torch.arange(1, 20_001, dtype=torch.float64) / 20_000
    mean = (weight * t).sum()
    assert math.isclose((weight * (t - mean) ** 2).sum().sqrt(), std, rel_tol=2e-3)


def test_power_function_has_the_published_exponents_and_ends_at_the_plain_average():
    assert PowerFunction((0.05, 0.1)).gammas == pytest.approx([16.97, 6.94], abs=5e-3)  # EDM2, Sec. 3.1
    assert_close(_profile(PowerFunction((12**-0.5,)), 50), torch.full((50, 1), 0.02, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(()), r"decays=\[\] is not allowed"),
        (lambda: Constant((0.9, 0.9)), r"decays=\[0.9,0.9\] is not .* different"),
        (lambda: Constant((1.0,)), r"decays=\[1.0\] is not .* < 1"),
        (lambda: Constant((math.nan,)), r"decays=\[nan\] is not allowed"),
        (lambda: HalfLife(0), "images=0 is not allowed"),
        (lambda: HalfLife(math.inf), "images=inf is not allowed"),
        (lambda: HalfLife(1, ramp=0), "ramp=0 is not .*, or null"),
        (lambda: PowerFunction(()), r"stds=\[\] is not allowed"),
        (lambda: PowerFunction((0.1, 0.1)), r"stds=\[0.1,0.1\] is not .* different"),
        (lambda: PowerFunction((0.0,)), r"stds=\[0.0\] is not .* > 0"),
        (lambda: PowerFunction((0.3,)), r"stds=\[0.3\] is not .* <= 0.2887"),
    ],
)
def test_families_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("decay", [0.0, 0.999])
def test_the_host_never_waits_for_the_device(decay):
    """A meta tensor has no values: whatever asked for one would fail."""
    ema_update([torch.empty(3, device="meta")], [torch.empty(3, device="meta")], decay)
