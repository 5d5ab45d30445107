"""Preconditionings and weightings, against official code."""

import pytest
import torch
from parity.golden import F32, F64, TinyNet, cases, load
from torch import nn
from torch.testing import assert_close

from consistency_models.losses import weightings
from consistency_models.noise import preconditioning
from consistency_models.noise.schedules import Levels

WEIGHTINGS = {
    "snr": lambda sigma_data: weightings.SNR(),
    "snr+1": lambda sigma_data: weightings.SNRPlusOne(),
    "truncated-snr": lambda sigma_data: weightings.TruncatedSNR(),
    "uniform": lambda sigma_data: weightings.Uniform(),
    "karras": weightings.EDM,
}


@pytest.mark.parametrize("run", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize(("path", "sigma_data", "boundary", "name"), cases(r"sd([\d.]+)_(bc_)?(c_skip|c_out|c_in)"))
def test_scalings(path, sigma_data, boundary, name, run):
    case = load(path)
    scalings = (preconditioning.Boundary if boundary else preconditioning.EDM)(float(sigma_data))
    got = getattr(scalings, name)(case["sigma"].to(run["dtype"]))
    assert_close(got, case[f"sd{sigma_data}_{boundary or ''}{name}{run['suffix']}"], rtol=run["rtol"], atol=run["atol"])


@pytest.mark.parametrize("run", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize("path", cases("rescaled_t"))
def test_noise_label_is_a_thousandth_of_the_official_time(path, run):
    case = load(path)
    got = 1000 * preconditioning.EDM().c_noise(case["sigma"].to(run["dtype"]))
    assert_close(got, case[f"rescaled_t{run['suffix']}"], rtol=run["rtol"], atol=run["atol"])


@pytest.mark.parametrize("run", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize(("path", "sigma_data", "name"), cases(r"sd([\d.]+)_w_([a-z+1-]+)"))
def test_weightings(path, sigma_data, name, run):
    case = load(path)
    sigma = case["sigma"].to(run["dtype"])
    got = WEIGHTINGS[name](float(sigma_data))(Levels(high=sigma, low=sigma / 2))
    assert_close(got, case[f"sd{sigma_data}_w_{name}{run['suffix']}"], rtol=run["rtol"], atol=0)


@pytest.mark.parametrize("run", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize(("path", "kind"), cases(r"(edm|cm)_denoised"))
def test_denoise(path, kind, run):
    case = load(path)
    scalings = {"edm": preconditioning.EDM, "cm": preconditioning.Boundary}[kind]()
    outputs = []
    network = TinyNet(case, "net", run["dtype"])
    network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model = preconditioning.Preconditioned(network, scalings)
    got = model(case["x_t"].to(run["dtype"]), case["sigma"].to(run["dtype"]))
    tolerance = {"rtol": run["rtol"], "atol": run["atol"]}
    assert_close(got, case[f"{kind}_denoised{run['suffix']}"], **tolerance)
    assert_close(outputs[0], case[f"{kind}_model_output{run['suffix']}"], **tolerance)


class EDMInner(nn.Module):
    """F = 0.3·x + 0.1·sin(c_noise) + 0.05·x·roll(x, 1, W) + 0.02·Σ_k labels_k·(k + 1): edm's inner network."""

    def forward(self, x, c_noise, labels=None, augment=None):
        out = 0.3 * x + 0.1 * torch.sin(c_noise).view(-1, 1, 1, 1) + 0.05 * x * x.roll(1, dims=3)
        if labels is not None:
            out = out + 0.02 * (labels * torch.arange(1, labels.shape[1] + 1)).sum(1).view(-1, 1, 1, 1)
        return out


@pytest.mark.parametrize(
    ("path", "name", "sigma_data", "what"), cases(r"(EDMPrecond)(?:_sd([\d.]+)_uncond)?/(D|D_nolabel|D_scalar_sigma)")
)
def test_edm_preconditioning(path, name, sigma_data, what):
    case = load(path)
    model = preconditioning.Preconditioned(EDMInner(), preconditioning.EDM(float(sigma_data or 0.5)))
    sigma = case["sigma"][3] if what == "D_scalar_sigma" else case["sigma"]
    labels = case["class_labels"] if what == "D" and sigma_data is None else None
    got = model(case["x"], sigma, labels)
    key = f"{name}_sd{sigma_data}_uncond/{what}" if sigma_data else f"{name}/{what}"
    assert_close(got, case[key], rtol=1e-6, atol=1e-6 * case[key].abs().max().item())


@pytest.mark.parametrize("path", cases(r"EDMLoss/loss", r"EDMLoss/rnd"))
def test_edm_loss(path, fixed_rows):
    from consistency_models.losses.distances import SquaredL2
    from consistency_models.noise.schedules import LogNormal

    case = load(path)
    arguments = case["meta"]["EDMLoss"]["kwargs"]
    names = {"mean": "P_mean", "std": "P_std"}
    law = LogNormal(**{ours: arguments[theirs] for ours, theirs in names.items() if theirs in arguments})
    sigma_data = arguments.get("sigma_data", 0.5)
    levels = law(fixed_rows(case["EDMLoss/rnd"].flatten()), 0, 1)
    model = preconditioning.Preconditioned(EDMInner(), preconditioning.EDM(sigma_data))
    x = case["images"]
    x_t = x + levels.high.view(-1, 1, 1, 1) * case["EDMLoss/unit_noise"]
    denoised = model(x_t, levels.high, case["labels"])
    weight = weightings.EDM(sigma_data)(levels)
    expected = case["EDMLoss/loss"]
    tolerance = {"rtol": 1e-5, "atol": 1e-6 * expected.abs().max().item()}
    assert_close(weight.view(-1, 1, 1, 1) * (denoised - x).square(), expected, **tolerance)
    assert_close(weight * SquaredL2()(denoised, x), expected.mean((1, 2, 3)), **tolerance)
