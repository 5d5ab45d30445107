"""The fine Heun solution against the exact probability-flow ODE of Gaussian data."""

import pytest
import torch
from parity.golden import cases, constants, load

from consistency_models.evaluation.ode_error import HeunSolution


@pytest.mark.parametrize("path", cases("consistency", "mean", "std", folder="exact"))
def test_heun_solution_reaches_the_exact_end_point(path):
    case, sigma_min = load(path), constants(path)["sigma_min"]
    variance = case["std"] ** 2

    def denoised(x, sigma, labels):
        return case["mean"] + (x - case["mean"]) * variance / (variance + sigma[:, None] ** 2)

    solution = HeunSolution(denoised, 1000)
    for x, sigma, expected in zip(case["x"], case["sigma"].tolist(), case["consistency"]):
        torch.testing.assert_close(solution(x[None], sigma, sigma_min)[0], expected, rtol=1e-3, atol=1e-4)
