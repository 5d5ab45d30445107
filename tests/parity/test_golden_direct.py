"""Direct CM against a plain loop over the grid, one row at a time."""

import pytest
import torch
from methods.steps import method, step_of
from parity.golden import cases, constants, expect, load
from parity.test_golden_losses import ExactNet

from consistency_models.methods.dcm import DirectConsistency
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary
from consistency_models.noise.schedules import Levels, karras_grid
from consistency_models.sampling import solvers


@pytest.mark.parametrize(("path", "solver", "N"), cases(r"(euler|heun)_(\d+)_target", r"teacher\.W1", r"student\.W1"))
def test_target_and_loss(path, solver, N):
    case, fixed = load(path), constants(path)
    grid = karras_grid(int(N) + 1, fixed["sigma_min"], fixed["sigma_max"], fixed["rho"])  # N intervals
    expect(grid, case, f"sigmas_{N}", rtol=1e-12, atol=0)
    n = case[f"n_{N}"]
    levels = Levels(high=grid[n], low=grid[n - 1], index=n - 1, grid=grid)
    expect(levels.high, case, f"sigma_n_{N}", rtol=1e-12, atol=0)
    networks = {
        name: ExactNet({key.replace(f"{name}.", "net."): case[key] for key in case if key.startswith(f"{name}.")})
        for name in ("teacher", "student")
    }
    teacher = Preconditioned(networks["teacher"], EDM(fixed["sigma_data"]))
    student = Preconditioned(networks["student"], Boundary(fixed["sigma_data"], fixed["sigma_min"]))
    heun = solver == "heun"
    direct = method(DirectConsistency, student, teacher, solver=solvers.Heun() if heun else solvers.Euler())
    step = step_of(case["x0"], case["noise"], levels)
    expect(step.x_t, case, f"x_n_{N}", rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        target = direct.target(step)
        loss = direct.loss(step, student(step.x_t, levels.high), target)
    expect(target, case, f"{solver}_{N}_target", rtol=1e-9, atol=1e-10)
    expect(loss, case, f"{solver}_{N}_loss_per_sample", rtol=1e-8, atol=1e-12)
    expect(loss.mean(), case, f"{solver}_{N}_loss", rtol=1e-8, atol=0)
    assert direct.teacher_calls == n.sum() * (2 if heun else 1)  # only rows that are on their way
