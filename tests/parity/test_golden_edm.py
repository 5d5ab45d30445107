"""What EDM restates of other work: preconditionings of VP, VE and iDDPM, their losses, and the samplers."""

import pytest
import torch
from parity.golden import cases, load
from parity.test_golden_scalings import EDMInner
from torch.testing import assert_close

from consistency_models import weightings
from consistency_models.preconditioning import IDDPM, VE, VP, Preconditioned
from consistency_models.schedules import Levels

MAKE = {"VP": VP, "VE": VE, "iDDPM": IDDPM}


@pytest.mark.parametrize(("path", "name", "what"), cases(r"(VP|VE|iDDPM)Precond/(D|D_nolabel)"))
def test_denoised(path, name, what):
    case = load(path)
    model = Preconditioned(EDMInner(), MAKE[name]())
    got = model(case["x"], case["sigma"], case["class_labels"] if what == "D" else None)
    expected = case[f"{name}Precond/{what}"]
    assert_close(got, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(("path", "name"), cases(r"(VP|VE|iDDPM)Precond/sigma_min_max"))
def test_range_of_levels(path, name):
    scalings = MAKE[name]()
    got = torch.tensor([scalings.sigma_min, scalings.sigma_max], dtype=torch.float64)
    # officially float32, in which exp(1e-6) - 1 is 9.5e-7 (VP) and the last level of the table has five digits (iDDPM)
    assert_close(got, load(path)[f"{name}Precond/sigma_min_max"], rtol={"VP": 0.03, "VE": 0}.get(name, 1e-5), atol=0)


@pytest.mark.parametrize("path", cases("VPPrecond/sigma_of_t"))
def test_vp_levels_and_times(path):
    case = load(path)
    assert_close(VP().sigma(case["VPPrecond/t"]), case["VPPrecond/sigma_of_t"], rtol=1e-6, atol=0)
    assert_close(VP().time(case["sigma"].double()), case["VPPrecond/sigma_inv"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", cases("iDDPMPrecond/u"))
def test_iddpm_levels(path):
    case, scalings = load(path), IDDPM()
    assert_close(scalings.levels, case["iDDPMPrecond/u"], rtol=1e-5, atol=0)
    assert torch.equal(scalings.index(case["sigma"]), case["iDDPMPrecond/index"])
    rounded = scalings.levels[scalings.index(case["sigma"])].double()
    assert_close(rounded, case["iDDPMPrecond/round_sigma"], rtol=1e-5, atol=0)


LEVELS = {
    "VP": lambda u: VP().sigma(1 + u * (1e-5 - 1)),
    "VE": lambda u: VE().sigma_min * (VE().sigma_max / VE().sigma_min) ** u,
}


@pytest.mark.parametrize(("path", "name"), cases(r"(VP|VE)Loss/loss"))
def test_losses(path, name):
    case = load(path)
    sigma = LEVELS[name](case[f"{name}Loss/rnd"].flatten())
    y = case["images"]
    noisy = y + sigma.view(-1, 1, 1, 1) * case[f"{name}Loss/unit_noise"]
    denoised = Preconditioned(EDMInner(), MAKE[name]())(noisy, sigma, case["labels"])
    weight = weightings.SNR()(Levels(high=sigma, low=sigma)).view(-1, 1, 1, 1)
    expected = case[f"{name}Loss/loss"]
    assert_close(weight * (denoised - y).square(), expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
