"""FACM, Shortcut and IMM against their official code, or the paper's formulas where there is none."""

from functools import partial

import pytest
import torch
from methods.steps import method, step_of
from parity.flow_networks import (
    EXACT,
    ConvNet,
    FlatNet,
    check_all_gradients,
    flow_step,
    labels_of,
    loss_of,
    setting_of,
    sigma_of,
    stored,
)
from parity.golden import cases, expect, load
from torch.testing import assert_close

from consistency_models.losses.distances import PseudoHuber
from consistency_models.losses.moments import MomentMatching
from consistency_models.losses.weightings import Uniform
from consistency_models.methods.facm import FlowAnchoredConsistency
from consistency_models.methods.imm import InductiveMomentMatching
from consistency_models.methods.meanflow import MeanFlow
from consistency_models.methods.shortcut import Shortcut
from consistency_models.noise.pairs import Dyadic, Groups
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Flow
from consistency_models.noise.schedules import Levels
from consistency_models.sampling.samplers import FlowMapSampler
from consistency_models.teachers import Guided


class Reversed(ConvNet):
    """FACM's network in our clock: it is called at 1 - t and 1 - r, and predicts x0 - noise."""

    def forward(self, x, t, labels=None, augment=None, r=None):
        return -super().forward(x, 1 - t, labels, augment, None if r is None else 1 - r)


def of_kind(kind):
    """The cases of a kind of FACM's file, which has copies of other methods."""
    found = cases(r"(case\d+)_F", r"net_(one|two)\..+", "cases_json")
    return [each for each in found if setting_of(load(each.values[0]), each.values[1]).get("kind", "facm") == kind]


def facm_network(case, setting):
    """The network of two times or of one."""
    return Reversed(case, "net_two" if setting["two"] else "net_one")


def facm_teacher(case, setting):
    """The teacher with guidance above τ = glow and below ghigh, or None."""
    if not setting.get("distill"):
        return None
    teacher = Preconditioned(Reversed(case, "teacher"), Flow(gap=False))
    teacher.origin = None
    if setting.get("cfgw", 1) <= 1:
        return teacher
    low, high = (1 / tau - 1 if tau else torch.inf for tau in (setting["ghigh"], setting["glow"]))
    return Guided(teacher, setting["cfgw"], interval=(low, high))


@pytest.mark.parametrize(("path", "name"), of_kind("facm"))
def test_facm(path, name):
    case, setting = load(path), setting_of(load(path), name)
    network = facm_network(case, setting)
    model, teacher = Preconditioned(network, Flow(gap=False)), facm_teacher(case, setting)
    trained = method(FlowAnchoredConsistency, model, teacher, power=setting["p"], tangent_clip=1.0)
    labels = labels_of(case, network)
    step = flow_step(case["x0"], case["noise"], 1 - case["t"], torch.zeros_like(case["t"]), labels)
    if setting.get("cfgw", 1) > 1 and not setting.get("distill"):  # by the network itself: not offered
        trained.velocity = lambda step: -case[f"{name}_v"]
    with torch.no_grad():
        expect(-trained.velocity(step), case, f"{name}_v", **EXACT)
    online, target, loss = loss_of(trained, step)
    expect(-online.chunk(2)[0], case, f"{name}_F", **EXACT)
    expect(-target.chunk(2)[0], case, f"{name}_target", **EXACT)
    expect(trained.derivative_along(step, -case[f"{name}_v"])[1], case, f"{name}_dF_dt", **EXACT)
    expect(loss, case, f"{name}_loss", **EXACT)
    check_all_gradients(loss, network, case, name)
    (consistent, anchor), (goal, v) = online.detach().chunk(2), target.chunk(2)  # one part at its target is a loss of 0
    expect(trained.loss(step, torch.cat([consistent, v]), target), case, f"{name}_loss_cm", **EXACT)
    expect(trained.loss(step, torch.cat([goal, anchor]), target), case, f"{name}_loss_fm", **EXACT)


@pytest.mark.parametrize(("path", "name"), of_kind("meanflow"))
def test_meanflow_of_facm(path, name):
    """Its adaptive weight takes the mean over an image: ours has the sum, and ε times the number of values."""
    case, setting = load(path), setting_of(load(path), name)
    if setting.get("r2t_ratio"):
        pytest.skip("the rows with r = t are chosen at random, and the file does not say which")
    network, values = facm_network(case, setting), case["x0"][0].numel()
    trained = method(MeanFlow, Preconditioned(network, Flow(gap=False)), power=1.0, eps=1e-3 * values)
    labels = labels_of(case, network)
    t, r = 1 - torch.minimum(case["t"], case["r"]), 1 - torch.maximum(case["t"], case["r"])
    step = flow_step(case["x0"], case["noise"], t, r, labels)
    if setting.get("distill") or setting.get("cfgw", 1) > 1:  # the velocity of a teacher, which MeanFlow does not have
        trained.velocities = lambda step: (-case[f"{name}_v"],) * 2
    expect(-trained.velocities(step)[0], case, f"{name}_v", **EXACT)
    online, target, loss = loss_of(trained, step)
    expect(-online, case, f"{name}_F", **EXACT)
    expect(-target, case, f"{name}_target", **EXACT)
    expect(trained.derivative_along(step, -case[f"{name}_v"])[1], case, f"{name}_dF_dt", **EXACT)
    expect(loss, case, f"{name}_loss", **EXACT)
    check_all_gradients(loss, network, case, name)


@pytest.mark.parametrize(("path", "name"), of_kind("scm"))
def test_scm_of_facm(path, name):
    """Its loss is none of ours: its clock is that of flow matching, and its gradient mixes the images of a batch.

    The velocity, the output and the derivative are those of FACM.
    """
    case, setting = load(path), setting_of(load(path), name)
    model = Preconditioned(facm_network(case, setting), Flow(gap=False))
    trained = method(FlowAnchoredConsistency, model, facm_teacher(case, setting))
    labels = labels_of(case, trained.model.network)
    step = flow_step(case["x0"], case["noise"], 1 - case["t"], torch.zeros_like(case["t"]), labels)
    u, du_dt = trained.derivative_along(step, -case[f"{name}_v"])
    expect(-u, case, f"{name}_F", **EXACT)
    expect(du_dt, case, f"{name}_dF_dt", **EXACT)


class OfShortcut(ConvNet):
    """Shortcut's network in our clock: it is called at 1 - t and log2(1/d), and predicts x0 - noise."""

    def forward(self, x, t, labels=None, augment=None, d=None):
        return -super().forward(x, 1 - t, labels, augment, -d.log2().round())


@pytest.mark.parametrize(("path", "name"), cases(r"(case\d+)_loss", r"noise_bootstrap"))
def test_shortcut(path, name):
    """Time 1 is 1 - 1e-13 here, whose level is finite; images and noise lie as in the official batch."""
    case, setting = load(path), setting_of(load(path), name)
    network, slow = OfShortcut(case, "net"), OfShortcut(case, "ema" if setting["bootstrap_ema"] else "net")
    count, total = int(case[f"{name}_bootstrap_rows"]), len(case["x0"])
    x = torch.cat([case["x0"][:count], case["x0"][: total - count]])
    noise = torch.cat([case["noise_bootstrap"][:count], case["noise"][: total - count]])
    t, d = (1 - case[f"{name}_t"]).clamp(max=1 - 1e-13), 2.0 ** -case[f"{name}_log2d"].double()
    schedule = Dyadic(setting["denoise_timesteps"], 1 / setting["bootstrap_every"])
    official = case["int_bootstrap"], case["int_flow"]
    sections = 2 ** case[f"{name}_log2d"].long()
    draws = torch.cat([official[0][:count], official[1][: total - count]]) % sections
    levels = schedule(stored(total, levels=(draws + 0.5) / sections), 0, 1)
    if not setting.get("bootstrap_dt_bias"):  # other shares of the lengths are not offered
        assert_close(levels.high, sigma_of(t).clamp(max=1e4).float(), rtol=1e-6, atol=0)
    labels = labels_of(case, network, f"{name}_label")
    step = flow_step(x, noise, t, t - d, labels)
    trained = method(
        Shortcut, Preconditioned(network, Flow()), cfg_scale=setting["cfg_scale"] if setting["bootstrap_cfg"] else 1.0
    )
    trained.schedule, trained.target_ema = schedule, True
    trained.target_copy = Preconditioned(slow, Flow())
    step.x_t = trained.network_input(step)
    expect(step.x_t * (1 - t)[:, None, None, None], case, f"{name}_x_t", **EXACT)
    _, target, loss = loss_of(trained, step)
    expect(-target, case, f"{name}_v", **EXACT)
    expect(loss, case, f"{name}_loss", **EXACT)
    check_all_gradients(loss, network, case, name)


@pytest.mark.parametrize(("path", "steps"), cases(r"sample_(\d+)", r"noise_bootstrap"))
def test_samples_of_shortcut(path, steps):
    """The jumps of our sampler but for the first, which starts at t = 1, where σ is infinite."""
    case, n = load(path), int(steps)
    network = OfShortcut(case, "net")
    labels = labels_of(case, network)
    z, d = case["noise"], torch.full((len(case["noise"]),), 1 / n, dtype=torch.float64)
    z = z - network(z, torch.ones_like(d), labels, None, d) / n
    if n > 1:
        sigmas = [sigma_of(1 - i / n) for i in range(1, n)]
        model = partial(Preconditioned(network, Flow()), labels=labels)
        z = FlowMapSampler(sigmas=sigmas)(model, z * n / sigmas[0], None)
    expect(z, case, f"sample_{steps}", **EXACT)


class OfIMM:
    """Scalings of the two forms of IMM: EDM's ("simple_edm"), or flow matching's with noise scaled by sigma_data."""

    def __init__(self, form, sigma_data):
        self.edm, self.form, self.sigma_data = EDM(sigma_data), form, sigma_data

    def time(self, sigma):
        return sigma / (sigma + self.sigma_data)

    def c_skip(self, sigma):
        return self.edm.c_skip(sigma) if self.form == "simple_edm" else 1 - self.time(sigma)

    def c_out(self, sigma):
        return -self.edm.c_out(sigma) if self.form == "simple_edm" else -self.time(sigma) * self.sigma_data

    def c_in(self, sigma):
        return self.edm.c_in(sigma)

    c_noise = time

    def c_end(self, sigma, end):
        return self.time(end)


@pytest.mark.parametrize(("path", "name"), cases(r"(case\d+)_mmd", r"unit_noise"))
def test_imm(path, name):
    case, setting = load(path), setting_of(load(path), name)
    sigma_data, group, network = case["sigma_data"].item(), int(case["group"]), FlatNet(case, "net")
    schedule = Groups(group, setting["k"], setting["T"], setting["eps"], sigma_data)
    for found, key in zip(schedule.times(case["uniform_t"], case["uniform_s"]), "trs"):
        expect(found, case, f"{name}_{key}", **EXACT)
    t, r, s = (case[f"{name}_{key}"].repeat_interleave(group) for key in "trs")
    trained = method(
        *(InductiveMomentMatching, Preconditioned(network, OfIMM(setting["form"], sigma_data))),
        distance=PseudoHuber(0.0),
        weighting=MomentMatching(setting["a"], setting["b"], sigma_data),
        group=group,
        sigma_data=sigma_data,
    )
    levels = Levels(*(sigma_data * sigma_of(time) for time in (t, r, s)))
    step = step_of(case["x0"], case["unit_noise"], levels)
    online, target, loss = loss_of(trained, step)
    at_r, at_s = (1 - r)[:, None, None, None], (1 - s)[:, None, None, None]
    expect(step.x_t * (1 - t)[:, None, None, None], case, f"{name}_x_t", **EXACT)
    expect(step.at(levels.low) * at_r, case, f"{name}_x_r", **EXACT)
    expect(online * at_s, case, f"{name}_f_st", **EXACT)
    expect(target * at_s, case, f"{name}_f_sr", **EXACT)
    expect(trained.weighting(levels)[::group], case, f"{name}_weight", **EXACT)
    expect(loss[::group], case, f"{name}_loss", **EXACT)
    expect(loss.mean(), case, f"{name}_mean", **EXACT)
    check_all_gradients(loss, network, case, name)
    trained.weighting = Uniform()
    expect(trained.loss(step, online.detach(), target)[::group], case, f"{name}_mmd", **EXACT)
