"""Preconditionings and weightings, against official code."""

import pytest
import torch
from parity.golden import RUNS, SUFFIX, TinyNet, cases, constants, expect, load
from torch import nn

from consistency_models.losses import weightings
from consistency_models.noise import Preconditioned, preconditioning
from consistency_models.noise.schedules import Levels

WEIGHTINGS = {
    "snr": lambda sigma_data: weightings.SNR(),
    "snr+1": lambda sigma_data: weightings.SNRPlusOne(),
    "truncated-snr": lambda sigma_data: weightings.TruncatedSNR(),
    "uniform": lambda sigma_data: weightings.Uniform(),
    "karras": weightings.EDM,
}


@pytest.mark.parametrize(
    ("path", "sigma_data", "boundary", "name", "suffix"),
    cases(rf"sd([\d.]+)_(bc_)?(c_skip|c_out|c_in){SUFFIX}", "sigma"),
)
def test_scalings(path, sigma_data, boundary, name, suffix):
    case, run = load(path), RUNS[suffix]
    if boundary:
        scalings = preconditioning.Boundary(float(sigma_data), constants(path)["sigma_min"])
    else:
        scalings = preconditioning.EDM(float(sigma_data))
    got = getattr(scalings, name)(case["sigma"].to(run["dtype"]))
    expect(got, case, f"sd{sigma_data}_{boundary or ''}{name}{run['suffix']}", rtol=run["rtol"], atol=run["atol"])


@pytest.mark.parametrize(("path", "suffix"), cases(f"rescaled_t{SUFFIX}", "sigma"))
def test_noise_label_is_a_thousandth_of_the_official_time(path, suffix):
    case, run = load(path), RUNS[suffix]
    got = 1000 * preconditioning.EDM().c_noise(case["sigma"].to(run["dtype"]))
    expect(got, case, f"rescaled_t{run['suffix']}", rtol=run["rtol"], atol=run["atol"])


@pytest.mark.parametrize(("path", "sigma_data", "name", "suffix"), cases(rf"sd([\d.]+)_w_([a-z+1-]+){SUFFIX}", "sigma"))
def test_weightings(path, sigma_data, name, suffix):
    case, run = load(path), RUNS[suffix]
    sigma = case["sigma"].to(run["dtype"])
    got = WEIGHTINGS[name](float(sigma_data))(Levels(high=sigma, low=sigma / 2))
    expect(got, case, f"sd{sigma_data}_w_{name}{run['suffix']}", rtol=run["rtol"], atol=0)


@pytest.mark.parametrize(("path", "kind", "suffix"), cases(rf"(edm|cm)_denoised{SUFFIX}", "x_t"))
def test_denoise(path, kind, suffix):
    case, run, fixed = load(path), RUNS[suffix], constants(path)
    if kind == "cm":
        scalings = preconditioning.Boundary(fixed["sigma_data"], fixed["sigma_min"])
    else:
        scalings = preconditioning.EDM(fixed["sigma_data"])
    outputs = []
    network = TinyNet(case, "net", run["dtype"])
    network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model = Preconditioned(network, scalings)
    got = model(case["x_t"].to(run["dtype"]), case["sigma"].to(run["dtype"]))
    tolerance = {"rtol": run["rtol"], "atol": run["atol"]}
    expect(got, case, f"{kind}_denoised{run['suffix']}", **tolerance)
    if f"{kind}_model_output{run['suffix']}" in case:
        expect(outputs[0], case, f"{kind}_model_output{run['suffix']}", **tolerance)


class EDMInner(nn.Module):
    """F = 0.3·x + 0.1·sin(c_noise) + 0.05·x·roll(x, 1, W) + 0.02·Σ_k labels_k·(k + 1): edm's inner network."""

    def forward(self, x, c_noise, labels=None, augment=None):
        out = 0.3 * x + 0.1 * torch.sin(c_noise).view(-1, 1, 1, 1) + 0.05 * x * x.roll(1, dims=3)
        if labels is not None:
            out = out + 0.02 * (labels * torch.arange(1, labels.shape[1] + 1)).sum(1).view(-1, 1, 1, 1)
        return out
