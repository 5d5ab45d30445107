"""MeanFlow, α-Flow and AYF against their official code, or the papers' formulas where there is none."""

import json

import pytest
import torch
from methods.steps import method, step_of
from parity.flow_networks import (
    EXACT,
    ConvNet,
    FlatNet,
    check_all_gradients,
    flow_step,
    in_flow,
    loss_of,
    setting_of,
    sigma_of,
    stored,
)
from parity.golden import cases, expect, load
from torch.nn.functional import one_hot
from torch.testing import assert_close

from consistency_models.methods.alphaflow import AlphaFlow
from consistency_models.methods.ayf import AlignYourFlow
from consistency_models.methods.meanflow import MeanFlow
from consistency_models.noise.pairs import LogNormalPair
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import Flow
from consistency_models.noise.schedules import Levels
from consistency_models.optim.ema import ema_update
from consistency_models.sampling.samplers import FlowMapSampler
from consistency_models.teachers import Guided

F32 = {"rtol": 1e-4, "atol": 1e-5}

ALL_TIMES, GUIDED = (r"u_target", r"du_dt|v"), (r"case\d+_v_guided", r"alphas")
"""Keys of a file of MeanFlow, and of those of its guidance and of α-Flow."""


@pytest.mark.parametrize(("path", "name"), cases(r"(case\d+)_loss", *ALL_TIMES, without=GUIDED))
def test_meanflow(path, name):
    case, setting = load(path), setting_of(load(path), name)
    network = ConvNet(case, "net")
    trained = method(MeanFlow, Preconditioned(network, Flow()), power=setting["norm_p"], eps=setting["norm_eps"])
    step = flow_step(case["x0"], case["noise"], case["t"], case["r"])
    expect(step.levels.high, case, "sigma", **EXACT)
    expect(step.levels.end, case, "sigma_end", **EXACT)
    expect(step.x_t, case, "x_ve", **EXACT)
    expect(in_flow(step), case, "z", **EXACT)
    online, target, loss = loss_of(trained, step)
    expect(online, case, "u", **EXACT)
    expect(target, case, "u_target", **EXACT)
    expect(trained.derivative_along(step, case["v"])[1], case, "du_dt", **EXACT)
    expect(loss, case, f"{name}_loss", **EXACT)
    check_all_gradients(loss, network, case, name)
    denoised = trained.model(step.x_t, step.levels.high, None, None, step.levels.end)
    expect(denoised, case, "denoised", **EXACT)
    trained.power = 0.0  # the sum of squares
    expect(trained.loss(step, online, target), case, f"{name}_squared", **EXACT)


@pytest.mark.parametrize("path", cases(*ALL_TIMES, without=GUIDED))
def test_meanflow_in_float32(path):
    case = {key: value.float() if isinstance(value, torch.Tensor) else value for key, value in load(path).items()}
    trained = method(MeanFlow, Preconditioned(ConvNet(case, "net"), Flow()))
    step = flow_step(case["x0"], case["noise"], case["t"], case["r"])
    online, _, _ = loss_of(trained, step)
    expect(online, case, "u", **F32)
    du_dt = trained.derivative_along(step, case["v"])[1]
    if "du_dt" in case:
        assert (du_dt - case["du_dt"]).abs().max() < 1e-3 * case["du_dt"].abs().max()


@pytest.mark.parametrize(("path", "law"), cases(r"law_(v\d)_t"))
def test_laws_of_the_cifar10_code(path, law):
    case = load(path)
    schedule = {
        "v0": LogNormalPair(-2.0, 2.0, -2.0, 2.0, swap=True, equal=0.25, by_position=False),
        "v1": LogNormalPair(-0.6, 1.6, -4.0, 1.6, swap=False, equal=0.25, by_position=False),
    }[law]
    draws = {"levels": case["law_normal_t"], "ends": case["law_normal_r"], "equal_ends": case["law_uniform"]}
    levels = schedule(stored(len(case["law_uniform"]), **draws), 0, 1)
    for found, expected in ((levels.high, f"law_{law}_t"), (levels.end, f"law_{law}_r")):
        assert_close(found, sigma_of(case[expected]).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("path", "grid"), cases(r"(sample_grid\d+)", r"grids_json"))
def test_sampler(path, grid):
    """The grids begin at t = 1, where σ is infinite: all but the first jump are the sampler's, the first is by hand."""
    case = load(path)
    times, network = json.loads(case["grids_json"])[int(grid.removeprefix("sample_grid"))], ConvNet(case, "net")
    z, (first, second, *_) = case["latent"], times
    z = z - (first - second) * network(z, z.new_full((len(z),), first), end=z.new_full((len(z),), first - second))
    if second > 0:
        sigmas = [sigma_of(t) for t in times[1:-1]]
        z = FlowMapSampler(sigmas=sigmas)(Preconditioned(network, Flow()), z / (1 - second) / sigmas[0], None)
    assert_close(z, case[grid], **EXACT)


@pytest.mark.parametrize("path", cases(r"sample_official_1", r"latent"))
def test_one_step_is_the_map_from_time_1_to_0(path):
    case = load(path)
    one = torch.ones(len(case["latent"]), dtype=torch.float64)
    found = case["latent"] - ConvNet(case, "net")(case["latent"], one, end=one)
    expect(found, case, "sample_official_1", **EXACT)


@pytest.mark.parametrize("path", cases(r"ema_trajectory"))
def test_average_of_every_sixteenth_step(path):
    """The official average moves every 16th step with decay^16, and is handed out in float32."""
    case = load(path)
    weights = case["ema_start"].clone()
    average, found = weights.clone(), {}
    for k, change in enumerate(case["ema_steps"], start=1):
        weights += change
        if k % 16 == 0:
            ema_update([average], [weights], case["ema_decay"].item() ** 16)
        found[k] = average.clone()
    for k, expected in zip(case["ema_at"].tolist(), case["ema_trajectory"]):
        assert_close(found[k].float(), expected.float(), rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize(("path", "name"), cases(r"(case\d+)_loss", r"case\d+_v_guided", without=(r"uniform_omega",)))
def test_guided_meanflow(path, name):
    case, setting = load(path), setting_of(load(path), name)
    network, total = ConvNet(case, "net"), len(case["x0"])
    guided = setting["guidance_eq"] == "cfg"
    trained = method(
        MeanFlow,
        Preconditioned(network, Flow()),
        power=setting["norm_p"],
        eps=setting["norm_eps"],
        label_dropout=setting["class_dropout_prob"],
        omega=setting["omega"] if guided else 1.0,
        kappa=setting["kappa"] if guided else 0.0,
        interval=(setting["t_start"], setting["t_end"]),
    )
    schedule = LogNormalPair(setting["P_mean"], setting["P_std"], equal=setting["data_proportion"])
    rows = stored(total, levels=case["normal_t"], ends=case["normal_r"], hidden_labels=case["uniform_drop"])
    levels, t, r = schedule(rows, 0, 1), case[f"{name}_t"], case[f"{name}_r"]
    assert_close(levels.high, sigma_of(t).float(), rtol=1e-6, atol=0)
    assert_close(levels.end, sigma_of(r).float(), rtol=1e-6, atol=0)
    labels = trained.encode_labels(case["label"], rows)
    told = one_hot(case[f"{name}_label_in"], network.num_classes + 1)[:, :-1]
    assert torch.equal(labels, told.float())
    step = flow_step(case["x0"], case["noise"], t, r, labels)
    with torch.no_grad():
        guided_v, along = trained.velocities(step)
    expect(guided_v, case, f"{name}_v_guided", **EXACT)
    expect(trained.derivative_along(step, along)[1], case, f"{name}_du_dt", **EXACT)
    online, target, loss = loss_of(trained, step)
    expect(online, case, f"{name}_u", **EXACT)
    expect(target, case, f"{name}_u_target", **EXACT)
    expect(loss, case, f"{name}_loss", **EXACT)
    expect(loss.mean(), case, f"{name}_mean_official", **EXACT)
    check_all_gradients(loss, network, case, name)


class OfIMF(ConvNet):
    """Improved MeanFlow's network: it is called with ω, where ours gives 1 - 1/ω."""

    def forward(self, x, t, labels=None, augment=None, end=None):
        omega = 1 / (1 - augment[:, :1])
        return super().forward(x, t, labels, torch.cat([omega, augment[:, 1:]], 1), end)


@pytest.mark.parametrize(("path", "name"), cases(r"(case\d+)_loss_v", r"uniform_omega"))
def test_improved_meanflow(path, name):
    """The derivative of a row whose class is dropped is along the velocity of its class."""
    case, setting = load(path), setting_of(load(path), name)
    network, total = OfIMF(case, "net"), len(case["x0"])
    trained = method(
        MeanFlow,
        Preconditioned(network, Flow()),
        power=setting["norm_p"],
        eps=setting["norm_eps"],
        label_dropout=setting["class_dropout_prob"],
        own_velocity=True,
        guidance_input=setting["cfg_beta"],
    )
    schedule = LogNormalPair(setting["P_mean"], setting["P_std"], equal=setting["data_proportion"])
    guidance = torch.stack([case["uniform_omega"], case["uniform_tmin"], case["uniform_tmax"]], 1)
    draws = {"levels": case["normal_t"], "ends": case["normal_r"], "hidden_labels": case["uniform_drop"]}
    rows = stored(total, guidance=guidance, **draws)
    levels, t, r = schedule(rows, 0, 1), case[f"{name}_t"], case[f"{name}_r"]
    assert_close(levels.high, sigma_of(t).float(), rtol=1e-6, atol=0)
    assert_close(levels.end, sigma_of(r).float(), rtol=1e-6, atol=0)
    labels = trained.encode_labels(case["label"], rows)
    assert torch.equal(labels, one_hot(case[f"{name}_label_in"], network.num_classes + 1)[:, :-1].float())
    step = flow_step(case["x0"], case["noise"], t, r, labels)
    step.rows, step.classes = rows, case["label"]
    step.augment = trained.inputs(step)
    for found, key in zip(step.augment.unbind(1), ("omega", "t_min", "t_max")):
        expect(1 / (1 - found) if key == "omega" else found, case, f"{name}_{key}", **EXACT)
    with torch.no_grad():
        guided, along = trained.velocities(step)
    expect(guided, case, f"{name}_v_guided", **EXACT)
    expect(along, case, f"{name}_tangent", **EXACT)
    expect(trained.derivative_along(step, along)[1], case, f"{name}_du_dt", **EXACT)
    online, _, loss = loss_of(trained, step)
    for found, key in zip(online.chunk(2, 1), ("u", "v_head")):
        expect(found, case, f"{name}_{key}", **EXACT)
    assert_close(loss, case[f"{name}_loss_u"] + case[f"{name}_loss_v"], **EXACT)
    expect(loss.mean(), case, f"{name}_mean_official", **EXACT)
    check_all_gradients(loss, network, case, name)


@pytest.mark.parametrize(("path", "name"), cases(r"(case\d+)_weight", r"alphas"))
def test_alpha_flow(path, name):
    case = load(path)
    network, alpha = FlatNet(case, "net"), case["alphas"][int(name.removeprefix("case"))].item()
    trained = method(AlphaFlow, Preconditioned(network, Flow()), eps=case["epsilon"].item())
    trained.alpha = lambda progress: alpha
    step = flow_step(case["x0"], case["noise"], case["t"], case["r"])
    expect(in_flow(step), case, "z", **EXACT)
    expect(trained.velocities(step)[0], case, "v", **EXACT)
    online, target, loss = loss_of(trained, step)
    expect(online, case, f"{name}_u", **EXACT)
    expect(target, case, f"{name}_target", **EXACT)
    expect(loss, case, f"{name}_loss", **EXACT)
    check_all_gradients(loss, network, case, name)


@pytest.mark.parametrize("path", cases(r"schedule_alpha"))
def test_the_fall_of_alpha(path):
    case = load(path)
    arguments = {"steepness": case["schedule_gamma"].item(), "clamp": case["schedule_clamp"].item()}
    trained = method(AlphaFlow, Preconditioned(FlatNet(case, "net"), Flow()), **arguments)
    found = [trained.alpha(k / case["schedule_total"].item()) for k in case["schedule_step"].tolist()]
    expect(torch.tensor(found, dtype=torch.float64), case, "schedule_alpha", **EXACT)


@pytest.mark.parametrize(("path", "name"), cases(r"(case\d+)_loss", r"case\d+_dF_dt", r"(weak|teacher)\.W1"))
def test_ayf(path, name):
    case, setting = load(path), setting_of(load(path), name)
    network = FlatNet(case, "net")
    teacher = Preconditioned(FlatNet(case, "teacher"), Flow(gap=False))
    teacher.origin = None
    if setting.get("guidance") is not None:
        teacher = Guided(teacher, setting["guidance"], Preconditioned(FlatNet(case, "weak"), Flow(gap=False)))
    student = Preconditioned(network, Flow(gap=False))
    trained = method(AlignYourFlow, student, teacher, warmup_steps=100, q_max=setting["q"], tangent_norm=setting["c"])
    step = flow_step(case["x0"], case["noise"], case["t"], case["r"], step=100)
    expect(in_flow(step), case, "z", **EXACT)
    with torch.no_grad():
        expect(trained.velocity(step), case, f"{name}_v", **EXACT)
    expect(trained.derivative_along(step, case[f"{name}_v"])[1], case, f"{name}_dF_dt", **EXACT)
    online, target, loss = loss_of(trained, step)
    expect(online, case, f"{name}_F", **EXACT)
    expect(target, case, f"{name}_target", **EXACT)
    expect(loss, case, f"{name}_loss", **EXACT)
    check_all_gradients(loss, network, case, name)
    trained.tangent_norm = None
    with torch.no_grad():
        expect(trained.target(step) - online, case, f"{name}_g", **EXACT)


@pytest.mark.parametrize("path", cases(r"lmd_point"))
def test_the_lagrangian_form_of_ayf(path):
    """The end of the map, its derivative by r, and the teacher's velocity there."""
    case = load(path)
    teacher = Preconditioned(FlatNet(case, "teacher"), Flow(gap=False))
    teacher.origin = None
    trained = method(AlignYourFlow, Preconditioned(FlatNet(case, "net"), Flow(gap=False)), teacher)
    step = flow_step(case["x0"], case["noise"], case["t"], case["r"])
    t, end = case["t"].view(-1, 1, 1, 1), step.levels.end

    def end_point(end):
        r = (end / (1 + end)).view(-1, 1, 1, 1)
        return (1 - t) * step.x_t - (t - r) * trained.u(step, step.x_t, step.levels.high, end)

    point, by_r = trained.derivative(step, end_point, (end,), ((1 + end) ** 2,))
    expect(point, case, "lmd_point", **EXACT)
    expect(by_r, case, "lmd_velocity_of_map", **EXACT)
    there = step_of(0 * point, 0 * point, Levels(end, end, end))
    there.x_t = point * (1 + end).view(-1, 1, 1, 1)
    expect(trained.velocity(there), case, "lmd_teacher_there", **EXACT)
