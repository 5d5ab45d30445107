"""Three clocks of one noise level, laws of levels, and closed-form flows in all of them."""

import pytest
import torch
from methods.steps import method, step_of
from parity.golden import cases, expect, load
from torch import nn
from torch.testing import assert_close

from consistency_models.data import GaussianMixture
from consistency_models.methods.meanflow import MeanFlow
from consistency_models.methods.sct import ContinuousConsistencyTraining
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Flow, TrigFlow
from consistency_models.noise.schedules import Levels, LogNormal, per_image
from consistency_models.random import BatchRandom
from consistency_models.sampling.samplers import FlowMapSampler

EXACT = {"rtol": 1e-9, "atol": 1e-11}


class Answers(nn.Module):
    """A network that gives this, and keeps what it was called with."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, noise_label, labels=None, augment=None):
        self.x, self.noise_label = x, noise_label
        return self.answer


@pytest.mark.parametrize(
    ("path", "scalings", "raw", "time", "state", "scale", "denoised"),
    [
        pytest.param(*case.values, *rest, id=f"{case.id}-{rest[0].__name__}")
        for case in cases("F_trig", "F_fm", "x_trig")
        for rest in (
            (TrigFlow, "F_trig", "angle", "x_trig", 1, "denoised_edm"),
            (EDM, "F_edm", None, "x_trig", 1, "denoised_edm"),
            (Flow, "F_fm", "t_fm", "x_fm", 0, "denoised_fm"),
        )
    ],
)
def test_the_same_point_in_another_clock(path, scalings, raw, time, state, scale, denoised):
    """The network is called with the time and the state of its clock, in units of σ_data in TrigFlow's."""
    file = load(path)
    sigma_data = file["sigma_data"].item()
    network = Answers(file[raw])
    model = Preconditioned(network, scalings() if scalings is Flow else scalings(sigma_data))
    assert_close(model(file["x_ve"], file["sigma"]), file[denoised], **EXACT)
    assert_close(network.x * sigma_data**scale, file[state], **EXACT)
    assert_close(network.noise_label, file[time] if time else file["sigma"].log() / 4, **EXACT)


@pytest.mark.parametrize(("path", "name"), cases(r"law_(\w+)_angle", r"law_u"))
def test_laws_of_levels(path, name, fixed_rows):
    """In every clock they are the log-normal law of σ."""
    file = load(path)
    sigma, normal = file[f"law_{name}_sigma"], torch.special.ndtri(file["law_u"])
    std = (sigma[-1] / sigma[0]).log() / (normal[-1] - normal[0])
    law = LogNormal((sigma[0].log() - std * normal[0]).item(), std.item())
    assert_close(law(fixed_rows(normal), 0, 1).high.double(), sigma, rtol=1e-6, atol=0)
    expect(TrigFlow(file["sigma_data"].item()).c_noise(sigma), file, f"law_{name}_angle", **EXACT)
    expect(Flow().c_noise(sigma), file, f"law_{name}_t", **EXACT)


@pytest.mark.parametrize("path", cases(r"dF_dangle", r"x_trig", r"v_trig", r"sigma_end"))
def test_the_tangent_of_the_consistency_function_of_gaussian_data_is_0(path):
    """f* is constant on trajectories, so that g = 0 along the true velocity; and f*'s F and dF/da are the file's."""
    file = load(path)
    x, sigma, sigma_data, mean, std = (file[name] for name in ("x", "sigma", "sigma_data", "mean", "std"))
    scalings = TrigFlow(sigma_data.item())

    class Exact(nn.Module):
        """F of f*(x, σ) = mean + std·(x - mean)/√(std² + σ²)."""

        num_classes = 0

        def forward(self, scaled, angle, labels=None, augment=None):
            level = sigma_data * angle.tan()[:, None]
            c_skip, c_out, c_in = (part(level) for part in (scalings.c_skip, scalings.c_out, scalings.c_in))
            noisy = scaled / c_in
            f = mean + std * (noisy - mean) / (std**2 + level**2).sqrt()
            return (f - c_skip * noisy) / c_out

    model = Preconditioned(Exact(), scalings)
    sct = method(ContinuousConsistencyTraining, model, warmup_steps=0)
    step = step_of(file["denoised"], (x - file["denoised"]) / sigma[:, None], Levels(sigma, torch.zeros_like(sigma)))
    step.rows = BatchRandom(0, 0, len(x), slice(0, len(x)))
    assert_close(step.x_t, x, **EXACT)
    expect(scalings.c_noise(sigma), file, "angle", **EXACT)
    expect(sigma_data * per_image(scalings.c_in(sigma), x) * x, file, "x_trig", **EXACT)
    expect(model(x, sigma), file, "f", **EXACT)
    expect(model.raw(x, sigma), file, "F", rtol=1e-9, atol=1e-9)
    velocity = per_image(sigma_data / (sigma / sigma_data).atan().cos(), x) * sct.slope(step)
    expect(velocity - per_image((sigma / sigma_data).atan().sin(), x) * x, file, "v_trig", **EXACT)
    by_sigma = sct.derivative(step, model.raw, (x, sigma), (sct.slope(step), torch.ones_like(sigma)))[1]
    by_angle = per_image((sigma**2 + sigma_data**2) / sigma_data, x) * by_sigma
    expect(by_angle, file, "dF_dangle", rtol=1e-7, atol=1e-7)
    assert sct.tangent(step).abs().max() < 1e-9


@pytest.mark.parametrize("path", cases(r"denoised_two_time", r"x_end", r"u"))
def test_jumps_and_average_velocities(path):
    """x_end = D + s/σ·(x - D), and D = z - t·u: the flow map of a closed form in both clocks."""
    file = load(path)
    tolerance = EXACT if "mean" in file else {"rtol": 1e-8, "atol": 1e-8}
    x, sigma, end, u = (file[name] for name in ("x", "sigma", "sigma_end", "u"))
    known = torch.isfinite(u).all(1)
    for time, level, z, point in (("t", sigma, "z", x), ("r", end, "z_end", file["x_end"])):
        expect(Flow().c_noise(level), file, time, **tolerance)
        if z in file:
            assert_close(per_image(Flow().c_in(level), point) * point, file[z], **tolerance)
    denoised = Preconditioned(Answers(u), Flow())(x, sigma)
    assert_close(denoised[known], file["denoised_two_time"][known], **tolerance)
    sampler = FlowMapSampler(sigmas=[1.0])
    for row in known.nonzero().flatten().tolist():
        asked = []

        def model(y, level, end, row=row, asked=asked):
            asked.append((level.item(), end.item()))
            return file["denoised_two_time"][row : row + 1]

        found = sampler._jump(model, x[row : row + 1], sigma[row].item(), end[row].item())
        assert_close(found, file["x_end"][row : row + 1], **tolerance)
        assert asked == [(sigma[row].item(), end[row].item())]


class FlowMapOfGaussian(nn.Module):
    """u(z, t, t - r) of data N(mean, std²), with d(t) = √((1 - t)²·std² + t²), without a difference of near numbers:

    z_r = (1 - r)·mean + (z - (1 - t)·mean)·d(r)/d(t),  u = (z - z_r)/(t - r)
    """

    two_times, num_classes = True, 0

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, z, t, labels=None, augment=None, gap=None):
        t, h = t[:, None], gap[:, None]
        r = t - h

        def deviation(time):
            return ((1 - time) ** 2 * self.std**2 + time**2).sqrt()

        slope = (t + r - (2 - t - r) * self.std**2) / (deviation(t) + deviation(r))  # (d(t) - d(r))/(t - r)
        return (z - (1 - t) * self.mean) * slope / deviation(t) - self.mean


@pytest.mark.parametrize("path", cases(r"du_dt", r"mean", r"std"))
def test_the_average_velocity_of_gaussian_data_is_its_own_target(path):
    """u + (t - r)·du/dt = v, by MeanFlow's derivative and target; and D is the consistency function where s = 0."""
    file = load(path)
    known = torch.isfinite(file["du_dt"]).all(1)
    x, sigma, end, v, u, du_dt = (file[name][known] for name in ("x", "sigma", "sigma_end", "v", "u", "du_dt"))
    meanflow = method(MeanFlow, Preconditioned(FlowMapOfGaussian(file["mean"], file["std"]), Flow()))
    step = step_of(x - sigma[:, None] * v, v, Levels(sigma, end, end))
    step.x, step.noise, step.x_t, step.rows = 0 * v, v, x, BatchRandom(0, 0, len(x), slice(0, len(x)))
    near = {"rtol": 1e-8, "atol": 1e-8}
    assert_close(meanflow.online(step), u, **near)
    assert_close(meanflow.derivative_along(step, v)[1], du_dt, **near)
    assert_close(meanflow.target(step), u, **near)
    f = meanflow.model(x, sigma, end=torch.zeros_like(sigma))
    assert_close(f, file["f"][known], **near)


@pytest.mark.parametrize("path", cases(r"du_dt", r"means", r"weights"))
def test_the_average_velocity_of_a_mixture(path):
    """By the suite's own mixture and its solution of the ODE. The error of a quotient by t - r grows as t - r falls."""
    file = load(path)
    known = torch.isfinite(file["du_dt"]).all(1) & (file["sigma_end"] > 0)  # the solver ends above 0
    x, sigma, end = (file[name][known] for name in ("x", "sigma", "sigma_end"))
    mixture = GaussianMixture(file["weights"], file["means"], file["stds"])
    denoised = mixture.denoised(x, sigma)
    v = (x - denoised) / sigma[:, None] - denoised
    gap = (sigma / (1 + sigma) - end / (1 + end))[:, None]
    moved = x / (1 + sigma)[:, None] - mixture.flow(x, sigma, end, tolerance=1e-11) / (1 + end)[:, None]
    near = {"rtol": 1e-8, "atol": 1e-8}
    assert_close(v, file["v"][known], **near)
    assert_close(moved, gap * file["u"][known], **near)
    assert_close(gap * v - moved, gap**2 * file["du_dt"][known], **near)
