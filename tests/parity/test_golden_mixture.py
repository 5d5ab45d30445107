"""Mixtures of Gaussians against closed forms and a high-order solver: golden/exact."""

import pytest
import torch
from parity.golden import cases, constants, load

from consistency_models.data import GaussianMixture

MIXTURES = ("weights", "means", "stds", "x", "sigma")


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def of(case):
    if "mean" in case:
        return GaussianMixture(torch.ones(1), case["mean"][None], case["std"][None])
    return GaussianMixture(case["weights"], case["means"], case["stds"])


ALL = [*cases("denoised", *MIXTURES), *cases("denoised", "mean", "std", "x", "sigma")]


@pytest.mark.parametrize("path", ALL)
def test_denoised_and_score(path):
    case = load(path)
    x, sigma = case["x"], case["sigma"]
    close(of(case).denoised(x, sigma), case["denoised"], 1e-10)
    close(of(case).score(x, sigma), (case["denoised"] - x) / sigma[:, None].square(), 1e-8)


@pytest.mark.parametrize("path", cases("log_density", *MIXTURES))
def test_log_density(path):
    case = load(path)
    close(of(case).log_density(case["x"], case["sigma"]), case["log_density"], 1e-10)


@pytest.mark.parametrize("path", [*cases("consistency", *MIXTURES), *cases("consistency", "mean", "std", "x", "sigma")])
def test_consistency(path):
    case = load(path)
    end = of(case).consistency(case["x"], case["sigma"], constants(path)["sigma_min"])
    close(end, case["consistency"], 1e-6)


@pytest.mark.parametrize("path", cases("flow_to_half_sigma", *MIXTURES))
def test_flow(path):
    case = load(path)
    close(of(case).flow(case["x"], case["sigma"], case["sigma"] / 2), case["flow_to_half_sigma"], 1e-7)
