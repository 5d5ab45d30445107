"""FACM, Shortcut and IMM: identities, on the exact flow map of a Gaussian and on random networks."""

import pytest
import torch
from methods.steps import method
from methods.test_flow_maps import ExactFlowMap, exact, exact_denoiser, random_mlp, step, trained_on
from torch.testing import assert_close

from consistency_models.losses.distances import PseudoHuber
from consistency_models.losses.moments import MomentMatching
from consistency_models.methods.facm import FlowAnchoredConsistency
from consistency_models.methods.flow_map import gap
from consistency_models.methods.imm import InductiveMomentMatching
from consistency_models.methods.meanflow import MeanFlow
from consistency_models.methods.shortcut import FLOOR, Shortcut
from consistency_models.noise.pairs import ArctanLogNormal, Dyadic, Groups
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Flow
from consistency_models.noise.schedules import Levels, per_image
from consistency_models.random import BatchRandom
from consistency_models.teachers import Guided


def to_zero(**arguments):
    made = step(**arguments)
    made.levels.end = torch.zeros_like(made.levels.high)
    return made


def rows(total, part=None):
    return BatchRandom(0, 3, total, part or slice(0, total))


# FACM


def test_the_anchor_is_flow_matching():
    made, facm = to_zero(), trained_on(FlowAnchoredConsistency, random_mlp())
    made.online = facm.online(made).detach()
    assert torch.equal(facm.target(made).chunk(2)[1], made.noise - made.x)
    assert_close(made.online.chunk(2)[1], facm.u(made, made.x_t, made.levels.high, made.levels.high))


def test_the_anchor_of_a_network_of_one_time_has_the_times_below_0():
    """-t in our clock, which is 2 - τ = 1 + t in that of the paper; near the data it is the velocity at t = 0."""
    made, network = to_zero(), random_mlp(two_times=False)
    facm = trained_on(FlowAnchoredConsistency, network)
    consistent, anchor = facm.online(made).chunk(2)
    t = made.levels.high / (1 + made.levels.high)
    z = made.x_t * per_image(1 - t, made.x_t)
    assert_close(consistent, network(z, t))
    assert_close(anchor, network(z, -t))


def test_guidance_of_a_teacher_in_an_interval():
    made, strong, weak = to_zero(), exact_denoiser, lambda x, *_: 0.5 * x
    strong.origin = None
    guided = Guided(strong, 1.6, weak, interval=(0.5, 2.0))
    levels = made.levels.high
    found = guided(made.x_t, levels)
    inside = (levels >= 0.5) & (levels <= 2)
    assert 0 < inside.sum() < len(inside)
    strong, weak = strong(made.x_t, levels), weak(made.x_t)
    expected = weak + per_image(1 + 0.6 * inside, weak) * (strong - weak)
    assert_close(found, expected)


def test_without_weight_and_clip_facm_is_meanflow_to_the_end():
    """p → ∞: u - g = v - t·du/dt."""
    made, network = to_zero(), random_mlp()
    facm = trained_on(FlowAnchoredConsistency, network, power=1e6, tangent_clip=1e6)
    made.online = facm.online(made).detach()
    assert_close(facm.target(made).chunk(2)[0], trained_on(MeanFlow, network).target(made), rtol=1e-9, atol=1e-9)


def test_the_exact_map_is_a_fixed_point_of_facm():
    made, facm = to_zero(), exact(FlowAnchoredConsistency, teacher=exact_denoiser)
    made.online = facm.online(made)
    target = facm.target(made)
    assert_close(target, made.online, rtol=1e-9, atol=1e-9)
    assert_close(facm.loss(made, made.online, target), torch.zeros(6, dtype=torch.float64))


def test_both_passes_of_facm_have_the_same_dropout_masks():
    made, facm = to_zero(), trained_on(FlowAnchoredConsistency, random_mlp(dropout=0.5))
    made.levels.end = made.levels.high  # then both are the same function
    facm.train()
    made.rows.seed_dropout()
    consistent, anchor = facm.online(made).chunk(2)
    assert torch.equal(consistent, anchor)


def test_levels_of_facm():
    levels = ArctanLogNormal(-0.8, 1.6)(rows(50_000), 0, 1)
    time = levels.high.double() / (1 + levels.high.double())
    assert (time * torch.pi / 2).tan().log().mean().item() == pytest.approx(-0.8, abs=0.03)
    assert not levels.end.any()


# Shortcut


def dyadic_step(total=24):
    schedule = Dyadic(8, 0.5)
    levels = schedule(rows(total), 0, 1).to("cpu", torch.float64)
    made = step(total=total)
    made.levels, made.rows = levels, rows(total)
    return made, schedule


def test_steps_of_the_schedule():
    made, schedule = dyadic_step(26)
    t, d = made.levels.high / (1 + made.levels.high), gap(made.levels)
    exponents = -d.clamp(min=1e-9).log2().round()
    assert exponents.tolist() == [2.0] * 4 + [1.0] * 4 + [0.0] * 5 + [3.0] * 13
    sections = 2**exponents
    assert_close((t * sections).round(), t * sections, rtol=0, atol=1e-3)
    assert (made.levels.high <= 1e4).all()
    part = schedule(rows(26, slice(5, 20)), 0, 1)
    assert torch.equal(part.high, made.levels.high[5:20].float())
    assert [schedule.bootstrapped(rows(26, slice(*ends))) for ends in ((0, 26), (5, 20), (13, 26))] == [13, 8, 0]


def test_the_exact_map_is_its_own_two_halves():
    """For every length; the other rows are flow matching."""
    made, schedule = dyadic_step()
    shortcut = exact(Shortcut, clip=1e6)
    shortcut.schedule = schedule
    made.x_t = shortcut.network_input(made)
    target = shortcut.target(made)
    assert_close(target[:12], shortcut.online(made)[:12], rtol=1e-6, atol=1e-6)
    assert_close(target[12:], ((1 - FLOOR) * made.noise - made.x)[12:], rtol=0, atol=1e-12)


def test_guidance_of_shortcut_is_of_the_shortest_steps_only():
    made, schedule = dyadic_step()
    made.labels = torch.eye(3, dtype=torch.float64)[torch.arange(24) % 3]
    network, targets = random_mlp(num_classes=3), []
    for cfg_scale in (1.0, 2.0):
        shortcut = trained_on(Shortcut, network, cfg_scale=cfg_scale)
        shortcut.schedule = schedule
        targets.append(shortcut.target(made))
    changed = (targets[0] != targets[1]).flatten(1).any(1)
    assert changed.tolist() == [True] * 4 + [False] * 20


# IMM


def grouped(total=8, group=4, seed=0):
    made = step(total=total, seed=seed)
    levels = Groups(group)(rows(total), 0, 1).to("cpu", torch.float64)
    made.levels = levels
    made.x_t = made.at(levels.high)
    return made


def imm(preconditioning=None, **arguments):
    model = Preconditioned(random_mlp(), preconditioning or EDM())
    return method(InductiveMomentMatching, model, distance=PseudoHuber(0.0), **arguments)


def test_levels_of_groups():
    levels = Groups(4)(rows(64), 0, 1)
    for level in (levels.high, levels.low, levels.end):
        assert torch.equal(level, level[::4].repeat_interleave(4))
    assert len(levels.high.unique()) == 16
    assert (levels.end <= levels.low).all()
    assert (levels.low <= levels.high).all()
    part = Groups(4)(rows(64, slice(16, 32)), 0, 1)
    assert torch.equal(part.end, levels.end[16:32])
    t, r, s = Groups(4, gap=1)(rows(64), 0, 1), Groups(4, gap=30)(rows(64), 0, 1), levels
    assert (t.low <= s.low).all()
    assert (r.low >= s.low).all()


def test_equal_images_have_no_loss_and_others_a_positive_one():
    made, trained = grouped(), imm()
    online = trained.online(made)
    assert_close(trained.loss(made, online, online), torch.zeros(8, dtype=torch.float64))
    assert (trained.loss(made, online, online + 1) > 0).all()


@pytest.mark.parametrize("preconditioning", [EDM(), Flow()])
def test_the_loss_is_symmetric_within_a_group_and_of_it_alone(preconditioning):
    made, trained = grouped(), imm(preconditioning)
    online, target = trained.online(made), trained.target(made)
    loss, order = trained.loss(made, online, target), [3, 1, 0, 2, 4, 5, 6, 7]
    assert_close(trained.loss(made, online[order], target), loss)
    changed = target.clone()
    changed[4:] += 1
    assert_close(trained.loss(made, online, changed)[:4], loss[:4])
    assert not torch.isclose(trained.loss(made, online, changed)[4:], loss[4:]).any()


def test_two_images_of_a_group_that_coincide_are_a_bounded_consistency_loss():
    """M = 1 would be 2w(1 - k(y, y')); a group of equal pairs has the same."""
    made, trained = grouped(4, 2), imm(group=2)
    y, other = (torch.randn(2, 1, 2, 2, dtype=torch.float64).repeat_interleave(2, 0) for _ in range(2))
    sigma, end = made.levels.high, made.levels.end
    alpha = 1 / (1 + end / 0.5)
    c = alpha * (1 - end / sigma) * EDM().c_out(sigma)
    kernel = (-per_image(alpha, y).flatten() * (y - other).flatten(1).norm(dim=1) / (4 * c)).exp()
    assert_close(trained.loss(made, y, other), 2 * (1 - kernel), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("refused", [{"group": 1}, {"group": 3}])
def test_groups_are_refused(refused):
    if refused["group"] == 1:
        with pytest.raises(ValueError, match="group=1 is not allowed"):
            imm(**refused)
    else:
        made, trained = grouped(), imm(**refused)
        online = trained.online(made)
        with pytest.raises(ValueError, match="must divide"):
            trained.loss(made, online, online)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (FlowAnchoredConsistency, {"power": 0.0}),
        (FlowAnchoredConsistency, {"tangent_clip": -1.0}),
        (Shortcut, {"clip": 0.0}),
    ],
)
def test_refused(kind, arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        method(kind, Preconditioned(ExactFlowMap(), Flow()), **arguments)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Dyadic, {"sections": 12}),
        (Dyadic, {"share": 1.5}),
        (Dyadic, {"sigma_max": 100.0}),
        (Groups, {"highest": 1.0}),
        (Groups, {"lowest": 0.995}),
        (Groups, {"gap": 0}),
    ],
)
def test_refused_schedules(kind, arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}"):
        kind(**arguments)


def test_levels_of_a_schedule_of_pairs_are_float32():
    for schedule in (Dyadic(), Groups(), ArctanLogNormal()):
        levels = schedule(rows(16), 0, 1)
        assert isinstance(levels, Levels)
        assert levels.high.dtype == levels.low.dtype == levels.end.dtype == torch.float32


def test_the_weight_of_imm():
    """In t: ½·sigmoid(b - λ)·(-dλ/dt)·α^a/(α² + t²) with λ = ln α²/t², by automatic differentiation."""
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64, requires_grad=True)
    alpha, sigma = 1 - t, 0.7 * t / (1 - t)
    ratio = (alpha**2 / t**2).log()
    (slope,) = torch.autograd.grad(ratio.sum(), t)
    expected = 0.5 * torch.sigmoid(4.0 - ratio) * -slope * alpha**2 / (alpha**2 + t**2)
    assert_close(MomentMatching(2.0, 4.0, 0.7)(Levels(sigma, sigma)), expected)
    with pytest.raises(ValueError, match="sigma_data"):
        MomentMatching(sigma_data=0.0)
