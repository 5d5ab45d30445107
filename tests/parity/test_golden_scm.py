"""sCT and sCD against the official JVP, loss and gradients of FastGen, by the methods' own classes."""

import pytest
import torch
from methods.steps import method, step_of
from parity.beyond import ConvNet, settings
from parity.golden import F32, F64, cases, check_gradients, expect, load
from torch import nn
from torch.testing import assert_close

from consistency_models.losses.weightings import EDM as EDMWeight
from consistency_models.methods.scd import ContinuousConsistencyDistillation
from consistency_models.methods.sct import ContinuousConsistencyTraining
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, TrigFlow
from consistency_models.noise.schedules import Levels, per_image
from consistency_models.random import BatchRandom

CASES = cases(r"case(\d+)_g_raw")
WARMUP = 10  # r = min(1, it/10)
METHODS = {"ct": ContinuousConsistencyTraining, "cd": ContinuousConsistencyDistillation}


class EDMByAngle(EDM):
    """EDM's scalings with the time of TrigFlow: what the files' networks were made with."""

    def c_noise(self, sigma):
        return (sigma / self.sigma_data).atan()


class LogVariance(nn.Module):
    """-w = phi[0]·a + phi[1]."""

    def __init__(self, phi, sigma_data):
        super().__init__()
        self.phi, self.sigma_data = nn.Parameter(phi.clone()), sigma_data

    def forward(self, sigma):
        return -(self.phi[0] * (sigma / self.sigma_data).atan() + self.phi[1])


class Weight(EDMWeight):
    """1/c_out², with the further factors 1/σ and 1/D of public code."""

    def __init__(self, sigma_data, prior, divide):
        super().__init__(sigma_data)
        self.prior, self.divide = prior, divide or 1

    def __call__(self, levels):
        return super().__call__(levels) / self.divide / (levels.high if self.prior else 1)


class Run:
    """A case as a training step, in the dtype."""

    def __init__(self, path, number, scalings, dtype):
        loaded = load(path)
        self.prefix, self.setting = settings(loaded)[int(number)]
        file = {key: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for key, v in loaded.items()}
        x0, sigma, sigma_data, setting = file["x0"], file["sigma"], loaded["sigma_data"].item(), self.setting
        classes = len(file.get("net.emb.weight", ())) if "label" in file else 0
        one_hot = torch.eye(classes, dtype=dtype) if classes else None
        # The files' networks stand in EDM's scalings, whose F has the other sign.
        self.network = ConvNet(file, "net", sign=-1 if scalings is TrigFlow else 1).to(dtype)
        of_teacher = "teacher" if setting["mode"] == "cd" else "net"
        inner = Preconditioned(ConvNet(file, of_teacher).to(dtype), EDMByAngle(sigma_data))
        labels = one_hot[file["label"]] if classes else None
        guidance, clip = setting.get("guidance"), setting.get("clip", False)
        null = one_hot[file["null_label"]] if guidance is not None else None

        def teacher(x, level, labels):
            if guidance is None:
                return inner(x, level, labels)
            return torch.lerp(inner(x, level, null.expand_as(labels)), inner(x, level, labels), guidance)

        self.method = method(
            METHODS[setting["mode"]],
            Preconditioned(self.network, scalings(sigma_data)),
            teacher if setting["mode"] == "cd" else None,
            weighting=Weight(sigma_data, setting.get("prior", False), setting.get("divide") and x0[0].numel()),
            log_weight=LogVariance(file["phi"], sigma_data) if "phi" in file else None,
            tangent_norm=None if clip else setting["c"],
            tangent_rms=setting.get("invariant", False) and not clip,
            tangent_clip=1.0 if clip else None,
            warmup_steps=WARMUP,
        )
        self.step = step_of(x0, file["noise"], Levels(sigma, torch.zeros_like(sigma)), labels)
        self.step.rows = BatchRandom(0, setting["it"], len(x0), slice(0, len(x0)))
        self.online = self.method.online(self.step)
        self.step.online = self.online.detach()
        self.file, self.sigma, self.sigma_data = file, sigma, sigma_data

    def expect(self, found, name, **tolerance):
        """`found` is the case's `name`, where the file has it."""
        if (expected := self.file.get(f"{self.prefix}{name}")) is not None:
            if name == "g_raw" and found.dtype is torch.float32:
                tolerance = {"rtol": 1e-4, "atol": 1e-3 * expected.abs().max().item()}
            assert_close(found, expected, msg=lambda text: f"{name}: {text}", **tolerance)

    def derivative(self, function):
        """That of `function(x, sigma)` by σ along the ODE."""
        one = torch.ones_like(self.sigma)
        return self.method.derivative(
            self.step, function, (self.step.x_t, self.sigma), (self.method.slope(self.step), one)
        )[1]


@pytest.mark.parametrize("run", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize("scalings", [TrigFlow, EDMByAngle], ids=["trigflow", "edm"])
@pytest.mark.parametrize(("path", "number"), CASES)
def test_tangent_target_loss_and_gradients(path, number, scalings, run):
    tolerance = {"rtol": run["rtol"], "atol": run["atol"]}
    case = Run(path, number, scalings, run["dtype"])
    file, step, method, sigma = case.file, case.step, case.method, case.sigma
    expect(step.x_t, file, "x_ve", **tolerance)
    clock = TrigFlow(case.sigma_data)
    expect(clock.c_noise(sigma), file, "t", **tolerance)
    expect(case.sigma_data * per_image(clock.c_in(sigma), step.x_t) * step.x_t, file, "x_t", **tolerance)
    expect(step.online, file, "denoised", **tolerance)
    raw = lambda x, level: method.sign * method.model.raw(x, level, step.labels)  # noqa: E731
    expect(raw(step.x_t, sigma).detach(), file, "F", **tolerance)
    with torch.no_grad():
        slope, g, target = method.slope(step), method.tangent(step), method.target(step)
    if run is F64:
        check_parts(case, slope, raw, tolerance)
    case.expect(g, "g_raw", **tolerance)
    case.expect(method.normalized(file[f"{case.prefix}g_raw"]), "g", **tolerance)
    case.expect(target, "target_denoised", **tolerance)
    loss = method.loss(step, case.online, target)
    case.expect(loss.detach(), "loss", **tolerance)
    if method.log_weight is not None:
        by_phi = torch.autograd.grad(loss.mean(), method.log_weight.phi, retain_graph=True)[0]
        case.expect(by_phi, "grad_phi", **tolerance)
    prefix = f"{case.prefix}grad_"
    count = sum(key.startswith(prefix) for key in file) - (f"{prefix}phi" in file)
    assert check_gradients(loss, case.network, file, prefix, **tolerance) == count


def check_parts(case, slope, raw, tolerance):
    """What the tangent is made of: dx_a/da, dF/da and df/da, and the derivative of the denoised images by σ."""
    x, angle = case.step.x_t, per_image((case.sigma / case.sigma_data).atan(), slope)
    by_angle = case.sigma_data / angle.cos() ** 2  # dσ/da
    dF, dD = case.derivative(raw), case.derivative(lambda x, sigma: case.method.model(x, sigma, case.step.labels))
    case.expect(case.sigma_data / angle.cos() * slope - angle.sin() * x, "v", **tolerance)
    case.expect(by_angle * dF, "dF_dt", **tolerance)
    case.expect(angle.cos() * angle.sin() * by_angle * dF, "jvp", **tolerance)
    case.expect(by_angle * dD, "df_dt", **tolerance)
    if case.setting.get("guidance") is None:
        expect(dD, case.file, f"{case.setting['mode']}_dD_dsigma", **tolerance)
