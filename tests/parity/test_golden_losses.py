"""The losses of consistency distillation and training and of diffusion, put together from the numerics as the methods
put them together, against official code: values, gradients and what lies between."""

import math

import pytest
import torch
from parity.golden import RUNS, SUFFIX, TinyNet, cases, check_gradients, constants, expect, load, perceptual_stub
from torch import nn

from consistency_models.losses import distances, weightings
from consistency_models.noise.curricula import Constant
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary
from consistency_models.noise.schedules import KarrasUniform, Levels, LogNormal, per_image
from consistency_models.sampling.solvers import Euler, Heun

JAX = {"dtype": torch.float64, "suffix": "", "rtol": 1e-8, "atol": 1e-10}
DISTANCES = {
    "l1": distances.L1(),
    "l2": distances.SquaredL2(),
    "l2-32": distances.SquaredL2At32(),
    "linf": distances.LInf(),
    "lpips": distances.LPIPS(metric=perceptual_stub),
}
WEIGHTINGS = {
    "uniform": weightings.Uniform,
    "snr": weightings.SNR,
    "snr+1": weightings.SNRPlusOne,
    "snrp1": weightings.SNRPlusOne,
    "truncated-snr": weightings.TruncatedSNR,
    "truncated_snr": weightings.TruncatedSNR,
}


def weighting_of(path, name):
    """The weighting that a file names."""
    return weightings.EDM(constants(path)["sigma_data"]) if name == "karras" else WEIGHTINGS[name]()


class Consistency:
    """One step of consistency distillation (with a solver) or training (without) on a file's networks and draws."""

    def __init__(self, path, N, descending_index, run, solver=None, self_target=False):
        case, dtype, fixed = load(path), run["dtype"], constants(path)
        grid = KarrasUniform(Constant(N), fixed["sigma_min"], fixed["sigma_max"], fixed["rho"]).grid(N).to(dtype)
        boundary, edm = Boundary(fixed["sigma_data"], fixed["sigma_min"]), EDM(fixed["sigma_data"])
        index = N - 2 - descending_index  # the official code counts from sigma_max down
        self.levels = levels = Levels(high=grid[index + 1], low=grid[index])
        x, noise = case["x_start"].to(dtype), case["noise"].to(dtype)
        self.network = TinyNet(case, "online", dtype)
        student = Preconditioned(self.network, boundary)
        slow = student if self_target else Preconditioned(TinyNet(case, "target", dtype), boundary)
        self.x_t = x + per_image(levels.high, x) * noise
        self.teacher_outputs = []
        with torch.no_grad():
            if solver is None:
                self.x_s = x + per_image(levels.low, x) * noise
            else:
                teacher = Preconditioned(TinyNet(case, "teacher", dtype), edm)
                teacher.register_forward_hook(lambda module, inputs, output: self.teacher_outputs.append(output))
                self.x_s = solver(teacher, self.x_t, levels.high, levels.low)
            self.target = slow(self.x_s, levels.low)
        self.online = student(self.x_t, levels.high)

    def loss(self, distance, weighting):
        return weighting(self.levels) * distance(self.online, self.target)


LOSS = rf"N(\d+)_([^_]+)_([^_]+)_loss{SUFFIX}"
CD = cases(LOSS, r"teacher\.conv1\.weight", r"indices_N\d+")
CT = cases(LOSS, r"online\.conv1\.weight", r"indices_N\d+", without=[r"teacher\..*"])


@pytest.mark.parametrize(
    ("path", "N", "distance", "weighting", "suffix", "solver"),
    [pytest.param(*c.values, Heun(), id=c.id) for c in CD] + [pytest.param(*c.values, None, id=c.id) for c in CT],
)
def test_consistency_distillation_and_training(path, N, distance, weighting, suffix, solver):
    case, tag, run = load(path), f"N{N}_{distance}_{weighting}", RUNS[suffix]
    step = Consistency(path, int(N), case[f"indices_N{N}"], run, solver)
    tolerance = {"rtol": run["rtol"], "atol": run["atol"]}
    between = {
        "t": step.levels.high,
        "t2": step.levels.low,
        "x_t": step.x_t,
        "x_t2": step.x_s,
        "distiller": step.online.detach(),
        "distiller_target": step.target,
        **{f"teacher{i}": output for i, output in enumerate(step.teacher_outputs, start=1)},
    }
    for name, value in between.items():
        if f"{tag}_{name}{run['suffix']}" in case:
            expect(value, case, f"{tag}_{name}{run['suffix']}", **tolerance)
    loss = step.loss(DISTANCES[distance], weighting_of(path, weighting))
    expect(loss.detach(), case, f"{tag}_loss{run['suffix']}", **tolerance)
    check_gradients(loss, step.network, case, f"{tag}_grad_", run["suffix"], **tolerance)


@pytest.mark.parametrize(("path", "tag"), cases(r"(N\d+_lpips_[^_]+)_metric_input_shape", r"online\.conv1\.weight"))
def test_images_reach_the_perceptual_metric_at_224(path, tag):
    case = load(path)
    shapes = []

    def metric(a, b):
        shapes.append(list(a.shape))
        return perceptual_stub(a, b)

    distances.LPIPS(metric=metric)(case["x_start"], case["noise"])
    assert shapes == [case[f"{tag}_metric_input_shape"].tolist()]


@pytest.mark.parametrize(
    ("path", "method", "solver", "distance", "weighting"),
    cases(
        r"(cd|ct)(?:_(heun|euler))?_(l1|l2|linf|lpips|selftarget)(?:_(uniform|snr|snrp1|truncated_snr))?_loss",
        "num_scales",
        "indices",
    ),
)
def test_losses_of_the_cifar10_code(path, method, solver, distance, weighting):
    case = load(path)
    step = Consistency(
        path,
        int(case["num_scales"]),
        case["indices"],
        JAX,
        {"heun": Heun(), "euler": Euler(), None: None}[solver],
        self_target=distance == "selftarget",
    )
    # That code leaves it to the metric to map [-1, 1] to [0, 1].
    metrics = DISTANCES | {
        "selftarget": distances.SquaredL2(),
        "lpips": distances.LPIPS(metric=lambda a, b: perceptual_stub(2 * a - 1, 2 * b - 1)),
    }
    loss = step.loss(metrics[distance], weighting_of(path, weighting or "uniform"))
    tag = "_".join(filter(None, [method, solver, distance, weighting]))
    tolerance = {"rtol": JAX["rtol"], "atol": JAX["atol"]}
    expect(loss.mean().detach(), case, f"{tag}_loss", **tolerance)
    checked = check_gradients(loss, step.network, case, f"{tag}_grad_", **tolerance)
    assert checked > 0 or not any(key.startswith(f"{tag}_grad_") for key in case)


@pytest.mark.parametrize("path", cases(r"dsm_loss", r"dsm_z_t"))
def test_score_matching_of_the_cifar10_code(path, fixed_rows):
    case = load(path)
    x, noise = case["x_start"].double(), case["noise"].double()
    t = (LogNormal().mean + LogNormal().std * case["dsm_z_t"].double()).exp()
    network = TinyNet(case, "online", torch.float64)
    sigma_data = constants(path)["sigma_data"]
    denoised = Preconditioned(network, EDM(sigma_data))(x + per_image(t, x) * noise, t)
    loss = (
        weightings.EDM(sigma_data)(Levels(high=t, low=0 * t)) * distances.SquaredL2()(denoised, x) * x[0].numel()
    )  # a sum there
    expect(loss.mean().detach(), case, "dsm_loss", rtol=1e-8, atol=0)
    checked = check_gradients(loss, network, case, "dsm_grad_", rtol=1e-8, atol=1e-10)
    assert checked > 0 or not any(key.startswith("dsm_grad_") for key in case)


DIFFUSION = rf"(uniform|karras|snr|snr\+1|truncated-snr)_loss{SUFFIX}"


@pytest.mark.parametrize(("path", "weighting", "suffix"), cases(DIFFUSION, r"net\.conv1\.weight", "x_start", "sigma"))
def test_diffusion(path, weighting, suffix):
    case, run = load(path), RUNS[suffix]
    dtype, suffix = run["dtype"], run["suffix"]
    x, noise, sigma = (case[name].to(dtype) for name in ("x_start", "noise", "sigma"))
    network = TinyNet(case, "net", dtype)
    denoised = Preconditioned(network, EDM(constants(path)["sigma_data"]))(x + per_image(sigma, x) * noise, sigma)
    squared = distances.SquaredL2()(denoised, x)
    loss = weighting_of(path, weighting)(Levels(high=sigma, low=0 * sigma)) * squared
    tolerance = {"rtol": run["rtol"], "atol": run["atol"]}
    if f"{weighting}_xs_mse{suffix}" in case:
        expect(squared.detach(), case, f"{weighting}_xs_mse{suffix}", **tolerance)
    expect(loss.detach(), case, f"{weighting}_loss{suffix}", **tolerance)
    if weighting == "karras" and any(key.startswith("grad_") for key in case):
        assert check_gradients(loss, network, case, "grad_", suffix, **tolerance)


@pytest.mark.parametrize("path", cases(r"lognormal_z", r"lognormal_sigma"))
def test_levels_of_diffusion(path, fixed_rows):
    case = load(path)
    levels = LogNormal()(fixed_rows(case["lognormal_z"]), 0, 1)
    expect(levels.high, case, "lognormal_sigma", rtol=1e-6, atol=0)


class ExactNet(nn.Module):
    """F(x, t) = W2 silu(W1 flatten(x) + a sin t + b cos t + c) + e,  t = c_noise: exact's network."""

    def __init__(self, case):
        super().__init__()
        for name in ("W1", "W2", "a", "b", "c", "e"):
            setattr(self, name, nn.Parameter(case[f"net.{name}"]))

    def forward(self, x, c_noise, labels=None, augment=None):
        t = c_noise[:, None]
        hidden = nn.functional.silu(x.flatten(1) @ self.W1.T + self.a * t.sin() + self.b * t.cos() + self.c)
        return (hidden @ self.W2.T + self.e).view_as(x)


@pytest.mark.parametrize("path", cases(r"pseudo_huber", r"net\.W1", r"sigma_low"))
def test_improved_consistency_training(path):
    case, fixed = load(path), constants(path)
    N, index = int(case["N"]), case["index"]
    grid = KarrasUniform(Constant(N), fixed["sigma_min"], fixed["sigma_max"], fixed["rho"]).grid(N)
    levels = Levels(high=grid[index + 1], low=grid[index])
    expect(levels.low, case, "sigma_low", rtol=1e-12, atol=0)
    expect(levels.high, case, "sigma_high", rtol=1e-12, atol=0)
    model = Preconditioned(ExactNet(case), Boundary(fixed["sigma_data"], fixed["sigma_min"]))
    x, noise = case["x0"], case["noise"]
    online = model(x + per_image(levels.high, x) * noise, levels.high)
    target = model(x + per_image(levels.low, x) * noise, levels.low)
    usual = math.isclose(case["c"].item(), 0.00054 * math.sqrt(x[0].numel()), rel_tol=1e-12)
    distance = distances.PseudoHuber(None if usual else case["c"].item())
    tolerance = {"rtol": 1e-10, "atol": 1e-12}
    with torch.no_grad():
        expect(online, case, "online", **tolerance)
        expect(target, case, "target", **tolerance)
        loss = weightings.InverseGap()(levels) * distance(online, target)
        expect(distance(online, target), case, "pseudo_huber", rtol=1e-9, atol=1e-13)
        expect(loss, case, "loss_per_sample", rtol=1e-9, atol=0)
        expect(loss.mean(), case, "loss", rtol=1e-9, atol=0)
