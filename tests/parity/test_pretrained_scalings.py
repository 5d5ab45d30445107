"""Preconditionings of official checkpoints around a closed form, against official code."""

import re

import pytest
import torch
from parity.golden import cases, load
from torch import nn
from torch.testing import assert_close

from consistency_models.preconditioning import EDM, Boundary, Preconditioned
from consistency_models.pretrained.preconditionings import IDDPM, VE, VP

INNER = "F = 0.3*x + 0.1*sin(c_noise) + 0.05*x*roll(x,1,dim=W) + 0.02*sum_k labels_k*(k+1)"


class Inner(nn.Module):
    """F, with the coefficients that the file names."""

    def __init__(self, formula=INNER):
        super().__init__()
        self.coefficients = [float(number) for number in re.findall(r"\d+\.\d+", formula)]

    def forward(self, x, c_noise, labels=None, augment=None):
        a, b, c, d = self.coefficients
        told = 0 if labels is None else labels @ torch.arange(1.0, labels.shape[1] + 1)
        return a * x + c * x * x.roll(1, 3) + (b * c_noise.sin() + d * told)[:, None, None, None]


def assert_near(got, expected):
    assert_close(got, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(("path", "name", "without"), cases(r"(EDM|VP|VE|iDDPM)Precond/D(_nolabel)?"))
def test_denoised(path, name, without):
    case = load(path)
    scalings = {"EDM": EDM, "VP": VP, "VE": VE, "iDDPM": lambda: IDDPM(case["iDDPMPrecond/u"])}[name]()
    model = Preconditioned(Inner(case["meta"]["inner"]), scalings)
    got = model(case["x"], case["sigma"], None if without else case["class_labels"])
    assert_near(got, case[f"{name}Precond/D{without or ''}"])


@pytest.mark.parametrize("path", cases("iDDPMPrecond/index"))
def test_iddpm_takes_the_nearest_level(path):
    case = load(path)
    got = IDDPM(case["iDDPMPrecond/u"]).c_noise(case["sigma"])
    assert_close(got, (len(case["iDDPMPrecond/u"]) - 2 - case["iDDPMPrecond/index"]).float(), rtol=0, atol=0)


@pytest.mark.parametrize(("path", "mode"), cases(r"precond/D_(train|eval)"))
def test_ect_has_one_form_in_training_and_another_afterwards(path, mode):
    case = load(path)
    scalings = EDM() if mode == "train" else Boundary(sigma_min=0.003)
    got = Preconditioned(Inner(), scalings)(case["precond/x"], case["precond/sigma"])
    assert_near(got, case[f"precond/D_{mode}"])
