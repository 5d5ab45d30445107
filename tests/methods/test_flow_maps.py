"""MeanFlow, α-Flow and AYF where the flow map is known: a Gaussian, whose velocity and flow have a closed form."""

import pytest
import torch
from methods.steps import method, step_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from consistency_models.conditions import Prompt
from consistency_models.methods.alphaflow import AlphaFlow
from consistency_models.methods.ayf import AlignYourFlow
from consistency_models.methods.differences import central_difference
from consistency_models.methods.facm import FlowAnchoredConsistency
from consistency_models.methods.flow_map import gap
from consistency_models.methods.meanflow import MeanFlow
from consistency_models.methods.sct import ContinuousConsistencyTraining
from consistency_models.networks.mlp import MLP
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import Flow, TrigFlow
from consistency_models.noise.schedules import Levels, per_image
from consistency_models.random import BatchRandom
from consistency_models.sampling.samplers import FlowMapSampler

STD = 0.6
"""Of the data, a Gaussian of mean 0."""


def deviation(t):
    """Of z at time t."""
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


class ExactFlowMap(nn.Module):
    """u(z, t, t - r) of Gaussian data: the flow is z_r = z·deviation(r)/deviation(t)."""

    two_times, num_classes = True, 0

    def forward(self, z, t, labels=None, augment=None, gap=None):
        equal = gap == 0
        r, h = t - gap, torch.where(equal, 1.0, gap)
        slope = (t - (1 - t) * STD**2) / deviation(t) ** 2
        ratio = torch.where(equal, slope, (1 - deviation(r) / deviation(t)) / h)
        return per_image(ratio, z) * z


def exact_denoiser(x, sigma, labels=None):
    return x * per_image(STD**2 / (STD**2 + sigma**2), x)


def exact(kind, **arguments):
    return method(kind, Preconditioned(ExactFlowMap(), Flow()), **arguments)


def step(equal=(), total=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, total, 1, 2, 2, generator=generator, dtype=dtype)
    high = torch.rand(total, generator=generator, dtype=dtype) * 3 + 0.2
    end = high * torch.rand(total, generator=generator, dtype=dtype)
    for i in equal:
        end[i] = high[i]
    made = step_of(x * STD, noise, Levels(high, end, end))
    made.rows = BatchRandom(0, 500, total, slice(0, total))
    return made


def marginal_velocity(step):
    """E[n - x0 | x_t]."""
    denoised = exact_denoiser(step.x_t, step.levels.high)
    return (step.x_t - denoised) / per_image(step.levels.high, denoised) - denoised


def random_mlp(**arguments):
    torch.manual_seed(0)
    network = MLP(2, 1, **{"two_times": True, "width": 16, **arguments}).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def trained_on(kind, network, **arguments):
    return method(kind, Preconditioned(network, Flow()), **arguments)


def test_the_gap_is_the_difference_of_times():
    levels = step(equal=[2]).levels
    t, r = (level / (1 + level) for level in (levels.high, levels.end))
    assert_close(gap(levels), t - r, rtol=0, atol=1e-15)
    assert gap(levels)[2] == 0


def test_the_target_of_the_exact_map_is_the_map():
    """u + (t - r)·du/dt = v, with the marginal velocity."""
    made = step(equal=[1])
    meanflow = exact(MeanFlow)
    meanflow.velocities = lambda step: (marginal_velocity(step),) * 2
    assert_close(meanflow.target(made), meanflow.online(made), rtol=1e-9, atol=1e-9)


def test_a_row_whose_step_ends_where_it_begins_is_flow_matching():
    made = step(equal=[0, 3])
    target, v = trained_on(MeanFlow, random_mlp()).target(made), made.noise - made.x
    assert torch.equal(target[[0, 3]], v[[0, 3]])
    assert not torch.isclose(target[[1, 2]], v[[1, 2]]).any()


def test_the_derivative_against_differences():
    made, meanflow, h = step(), trained_on(MeanFlow, random_mlp()), 1e-5
    v = made.noise - made.x
    u, du_dt = meanflow.derivative_along(made, v)
    assert_close(u, meanflow.online(made))
    t = made.levels.high / (1 + made.levels.high)
    z = made.x_t * per_image(1 - t, v)

    def at(time, z):
        sigma = time / (1 - time)
        return meanflow.u(made, z * per_image(1 + sigma, z), sigma, made.levels.end)

    assert_close(du_dt, (at(t + h, z + h * v) - at(t - h, z - h * v)) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [MeanFlow, AlignYourFlow, FlowAnchoredConsistency, ContinuousConsistencyTraining])
def test_differences_have_the_second_order_that_they_state(kind):
    """Value and derivative; with dropout, whose masks are those of the online pass."""
    made, errors = step(), []
    sct = kind is ContinuousConsistencyTraining
    teacher = {"teacher": exact_denoiser} if kind is AlignYourFlow else {}
    trained = {}
    for h in (None, 0.02, 0.01):
        model = Preconditioned(random_mlp(two_times=not sct, dropout=0.3), TrigFlow() if sct else Flow())
        trained[h] = method(kind, model, **teacher, difference=h)
    found = {}
    for h, each in trained.items():
        each.train()
        sigma, arguments = made.levels.high, {} if sct else {"end": made.levels.end}
        function = lambda x, sigma, each=each, arguments=arguments: each.model.raw(x, sigma, **arguments)  # noqa: E731
        found[h] = each.derivative(made, function, (made.x_t, sigma), (made.noise, torch.ones_like(sigma)))
    for exact, *approximate in zip(*found.values()):
        errors = [(each - exact).abs().max() for each in approximate]
        assert errors[0] > 1e-8
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_differences_in_float32():
    made, network = step(dtype=torch.float32), random_mlp().float()
    v = made.noise - made.x
    expected = trained_on(MeanFlow, network).derivative_along(made, v)
    found = trained_on(MeanFlow, network, difference=1e-3).derivative_along(made, v)
    assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert (found[1] - expected[1]).abs().max() < 2e-3 * expected[1].abs().max()


def test_differences_on_a_device_without_float64():
    dtypes = []

    def function(x, t):
        dtypes.append(x.dtype)
        return x * per_image(t, x)

    with FakeTensorMode():
        x, t = torch.empty(2, 1, 4, 4, device="mps"), torch.empty(2, device="mps")
        value, derivative = central_difference(function, (x, t), (x, t), 1e-3)
    assert {each.dtype for each in (value, derivative)} == set(dtypes) == {torch.float32}
    assert derivative.device.type == "mps"


def test_the_derivative_sees_the_dropout_of_the_online_pass():
    made, meanflow = step(), trained_on(MeanFlow, random_mlp(dropout=0.5))
    meanflow.train()
    made.rows.seed_dropout()
    online = meanflow.online(made)
    assert_close(meanflow.derivative_along(made, made.noise)[0], online, rtol=1e-12, atol=1e-12)
    assert not torch.equal(meanflow.online(made), online)


def test_two_exact_jumps_are_one():
    model, noise = Preconditioned(ExactFlowMap(), Flow()), torch.randn(5, 1, 2, 2, dtype=torch.float64)
    one = FlowMapSampler(steps=1)(model, noise, None)
    for steps in (2, 4):
        assert_close(FlowMapSampler(steps=steps)(model, noise, None), one, rtol=1e-9, atol=1e-12)
    assert_close(one, noise * 80 * STD / (STD**2 + 80**2) ** 0.5, rtol=1e-9, atol=1e-12)


def test_the_denoiser_and_the_velocity_give_the_same_loss():
    """‖D - D_target‖²/c_out² = ‖u - target‖²."""
    made, meanflow = step(), trained_on(MeanFlow, random_mlp(), power=0.0)
    online, target = meanflow.online(made), meanflow.target(made)
    denoised = meanflow.model(made.x_t, made.levels.high, None, None, made.levels.end)
    t = per_image(made.levels.high / (1 + made.levels.high), online)
    z = made.x_t * (1 - t)
    of_denoised = ((denoised - (z - t * target)) / t).square().flatten(1).sum(1)
    assert_close(meanflow.loss(made, online, target), of_denoised, rtol=1e-9, atol=0)


def test_the_adaptive_weight_has_no_gradient():
    made, meanflow = step(), trained_on(MeanFlow, random_mlp(), power=1.0, eps=0.5)
    online = torch.ones(6, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = meanflow.loss(made, online, torch.zeros_like(online))
    assert_close(loss, torch.full_like(loss, 4 / 4.5))
    assert_close(torch.autograd.grad(loss.sum(), online)[0], torch.full_like(online, 2 / 4.5))


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1e-4])
def test_alpha_flow_between_trajectory_flow_matching_and_meanflow(alpha):
    made, network = step(), random_mlp()
    flow = trained_on(AlphaFlow, network)
    flow.alpha = lambda progress: alpha
    target = flow.target(made)
    if alpha == 1:
        assert torch.equal(target, made.noise - made.x)
    elif alpha == 0.5:  # a step of half the gap along v, then the network: Shortcut's target, its first half from data
        t, r = (level / (1 + level) for level in (made.levels.high, made.levels.end))
        middle = (t + r) / 2
        sigma = middle / (1 - middle)
        u = flow.u(made, made.at(sigma), sigma, made.levels.end)
        assert_close(target, (made.noise - made.x + u) / 2, rtol=1e-9, atol=1e-9)
    else:  # (target - u)/α is MeanFlow's v - u - (t - r)·du/dt
        online, meanflow = flow.online(made), trained_on(MeanFlow, network).target(made)
        assert_close((target - online) / alpha, meanflow - online, rtol=1e-2, atol=1e-2)


def test_alpha_flow_clips_its_target():
    flow = trained_on(AlphaFlow, random_mlp(), clip=0.1)
    assert flow.target(step()).abs().max() == 0.1


def test_alpha_falls_between_its_ends():
    flow = trained_on(AlphaFlow, random_mlp(), start=0.2, stop=0.6)
    values = [flow.alpha(k / 100) for k in range(100)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[20], values[60], values[99]) == (1, 1, 0, 0)
    assert values[40] == pytest.approx(0.5)


def test_the_exact_map_is_a_fixed_point_of_ayf():
    made = step(equal=[0])
    ayf = exact(AlignYourFlow, teacher=exact_denoiser, warmup_steps=1, q_max=1.0)
    made.online = ayf.online(made)
    assert_close(ayf.target(made), ayf.online(made), rtol=1e-6, atol=1e-6)


def test_at_the_exact_map_the_lagrangian_form_holds_too():
    """d(end of the map)/dr is the teacher's velocity at the end."""
    made, h = step(), 1e-5
    ayf = exact(AlignYourFlow, teacher=exact_denoiser)
    r = made.levels.end / (1 + made.levels.end)

    def end_point(r):
        sigma_r = r / (1 - r)
        t = made.levels.high / (1 + made.levels.high)
        u = ayf.u(made, made.x_t, made.levels.high, sigma_r)
        return per_image(1 - t, u) * made.x_t - per_image(t - r, u) * u

    there = step_of(0 * made.x, 0 * made.x, Levels(made.levels.end, made.levels.end))
    there.x_t = end_point(r) / per_image(1 - r, made.x)
    assert_close((end_point(r + h) - end_point(r - h)) / (2 * h), ayf.velocity(there), rtol=1e-6, atol=1e-6)


def test_ayf_pulls_by_less_than_one_whatever_the_error():
    made = step()
    ayf = trained_on(AlignYourFlow, random_mlp(), teacher=lambda x, *_: 1e3 * x)
    made.online = ayf.online(made)
    pull = (ayf.target(made) - ayf.online(made)).flatten(1).norm(dim=1)
    assert ((pull > 0.9) & (pull < 1)).all()


def test_ayf_warms_up():
    """q = 0 is flow matching to the teacher's velocity; q grows by steps to q_max."""
    made, network = step(), random_mlp()
    targets = []
    for warmup in (10**9, 1000, 1):
        ayf = trained_on(
            AlignYourFlow, network, teacher=exact_denoiser, warmup_steps=warmup, q_max=0.9, tangent_norm=None
        )
        made.online = ayf.online(made)
        targets.append(ayf.target(made))
    velocity = marginal_velocity(made)
    assert_close(targets[0], velocity, rtol=1e-5, atol=1e-5)
    assert_close((targets[1] - velocity) / 0.5, (targets[2] - velocity) / 0.9, rtol=1e-5, atol=1e-5)


def test_hidden_labels_are_the_first_rows_in_any_division_of_the_batch():
    network = random_mlp(num_classes=3)
    meanflow = trained_on(MeanFlow, network, label_dropout=0.3)
    labels = torch.arange(40) % 3
    whole = meanflow.encode_labels(labels, BatchRandom(0, 1, 40, slice(0, 40)))
    hidden = int((whole.sum(1) == 0).sum())
    assert 0 < hidden < 30
    assert (whole[:hidden] == 0).all()
    assert (whole[hidden:].argmax(1) == labels[hidden:]).all()
    part = meanflow.encode_labels(labels[5:25], BatchRandom(0, 1, 40, slice(5, 25)))
    assert torch.equal(part, whole[5:25])


def test_guidance_leaves_the_network_in_train_mode():
    meanflow = trained_on(MeanFlow, random_mlp(num_classes=3), label_dropout=0.1, omega=2.0)
    meanflow.train()
    made = step()
    made.labels = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2]]
    assert (meanflow.velocities(made)[0] != made.noise - made.x).any()
    assert meanflow.model.network.training


@pytest.mark.parametrize(("kappa", "calls"), [(0.0, 1), (0.25, 2)])
def test_only_the_velocities_of_the_formula_are_computed(kappa, calls, monkeypatch):
    meanflow = trained_on(MeanFlow, random_mlp(num_classes=3), label_dropout=0.1, omega=2.0, kappa=kappa)
    made, own, count = step(), meanflow.own, []
    made.labels = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2]]
    monkeypatch.setattr(meanflow, "own", lambda *given: count.append(1) or own(*given))
    meanflow.velocities(made)
    assert len(count) == calls


class OfText(nn.Module):
    """u = z·(mean of the text)."""

    two_times, num_classes = True, 0

    def encode(self, labels):
        return labels

    def unconditional(self, labels):
        return labels.unconditional()

    def forward(self, z, t, labels=None, augment=None, gap=None):
        return per_image(labels.text.mean((1, 2)), z) * z


def test_guidance_by_text():
    """Rows that keep their text have the guided velocity, dropped rows that of the data."""
    meanflow = method(MeanFlow, Preconditioned(OfText(), Flow()), label_dropout=0.3, omega=2.0, kappa=0.25)
    text = torch.arange(1.0, 7.0, dtype=torch.float64).view(6, 1, 1).expand(6, 2, 4)
    prompts, made = Prompt(text, empty=torch.full((2, 4), 0.5, dtype=torch.float64)), step()
    made.labels = meanflow.encode_labels(prompts, made.rows)
    hidden = int((made.labels.text == 0.5).all(2).all(1).sum())
    assert 0 < hidden < 6
    v, z = made.noise - made.x, made.x_t / per_image(1 + made.levels.high, made.x)
    means = torch.arange(1.0, 7.0, dtype=torch.float64).view(6, 1, 1, 1)
    expected = 2 * v + (1 - 2 - 0.25) * 0.5 * z + 0.25 * means * z
    expected[:hidden] = v[:hidden]
    assert_close(meanflow.velocities(made)[0], expected)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (MeanFlow, {"power": -1.0}),
        (MeanFlow, {"eps": 0.0}),
        (MeanFlow, {"interval": (0.8, 0.2)}),
        (AlphaFlow, {"start": 0.5, "stop": 0.5}),
        (AlphaFlow, {"clamp": 0.5}),
        (AlignYourFlow, {"warmup_steps": -1}),
        (AlignYourFlow, {"tangent_norm": 0.0}),
    ],
)
def test_refused(kind, arguments):
    teacher = exact_denoiser if kind is AlignYourFlow else None
    with pytest.raises(ValueError, match=r"need|is not allowed"):
        exact(kind, teacher=teacher, **arguments)


def test_a_schedule_without_pairs_is_refused():
    made = step()
    made.levels.end = None
    with pytest.raises(ValueError, match="LogNormalPair"):
        exact(MeanFlow).online(made)
