"""Multistep consistency models against closed forms: edges, steps, targets and the chain sampler."""

import pytest
import torch
from methods.steps import Answers, method, step_of
from parity.golden import cases, constants, expect, load
from parity.test_golden_losses import ExactNet
from torch.testing import assert_close

from consistency_models.methods.mcm import MultistepConsistency
from consistency_models.noise.curricula import Annealed, Constant
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM
from consistency_models.noise.schedules import Levels, karras_grid
from consistency_models.noise.segments import Segments, cosine_grid, segment_edges
from consistency_models.sampling.samplers import SegmentSampler
from consistency_models.sampling.solvers import ADDIM


def spacing_of(path, name):
    """The grid that a file calls "karras", "cosine_kappa1", "cosine_kappa0.7" or "cosine_kappa_half"."""
    fixed, kappa = constants(path), name.removeprefix("cosine_kappa")
    if name == "karras":
        return lambda N: karras_grid(N, fixed["sigma_min"], fixed["sigma_max"], fixed["rho"])
    return lambda N: cosine_grid(N, fixed["sigma_max"], 0.5 if kappa == "_half" else float(kappa))


@pytest.mark.parametrize(("path", "name", "S"), cases(r"segments_(karras|cosine_kappa(?:_half|[\d.]+))_(\d+)"))
def test_edges(path, name, S):
    expected, spacing = load(path)[f"segments_{name}_{S}"], spacing_of(path, name)
    assert_close(segment_edges(int(S), spacing), expected, rtol=1e-10, atol=1e-14)
    for N in (2, 65, 1281):  # and every grid of a training has them
        grid = Segments(int(S), Constant(N), spacing).grid(N)
        assert_close(grid[:: (len(grid) - 1) // int(S)], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("path", cases(r"anneal_T", r"anneal_step"))
def test_annealed_steps(path):
    case, K = load(path), 200_000
    got = torch.tensor([Annealed().intervals(k, K) for k in case["anneal_step"].tolist()], dtype=torch.float64)
    expect(got, case, "anneal_T", rtol=1e-12, atol=0)


@pytest.mark.parametrize(("path", "kind"), cases(r"(train|distill)_target", r"sigma_p", r"f_s"))
def test_target(path, kind):
    case = load(path)
    levels = Levels(high=case["sigma_t"], low=case["sigma_s"], end=case["sigma_p"])
    model, teacher = Answers(case["f_s"]), Answers(case["teacher_x"]) if kind == "distill" else None
    solver = ADDIM(eta=float(case.get("eta", 0.75)))
    multistep = method(MultistepConsistency, model, teacher, solver=solver)
    step = step_of(case["x0"], case["noise"], levels)
    if "y_t" in case:
        expect(step.x_t, case, "y_t", rtol=1e-12, atol=1e-12)
    expect(multistep.target(step), case, f"{kind}_target", rtol=1e-10, atol=1e-10)
    if f"{kind}_y_s" in case:
        expect(model.asked[0][0], case, f"{kind}_y_s", rtol=1e-10, atol=1e-10)
    assert torch.equal(model.asked[0][1], case["sigma_s"])
    if kind == "distill":
        if "distill_x_variance" in case:
            variance = solver.variance(case["teacher_x"], case["sigma_t"], case["x0"])
            expect(variance, case, "distill_x_variance", rtol=1e-12, atol=0)
        assert multistep.teacher_calls == len(step.x)


@pytest.mark.parametrize(("path", "S"), cases(r"chain_(\d+)", r"net\.W1"))
def test_chain(path, S):
    case = load(path)
    model = Preconditioned(ExactNet(case), EDM(constants(path)["sigma_data"]))
    images = SegmentSampler(int(S), spacing=spacing_of(path, "cosine_kappa_half"))(model, case["noise"], None)
    expect(images, case, f"chain_{S}", rtol=1e-10, atol=1e-10)
