"""Direct CM and CMT: against loops over one row, and what they have in common with consistency distillation."""

import pytest
import torch
from methods.steps import method, step_of
from torch import nn
from torch.testing import assert_close

from consistency_models.methods.cd import ConsistencyDistillation
from consistency_models.methods.cmt import MidTraining
from consistency_models.methods.dcm import DirectConsistency
from consistency_models.noise import curricula
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import Boundary
from consistency_models.noise.schedules import KarrasUniform, per_image
from consistency_models.random import BatchRandom
from consistency_models.sampling.solvers import Euler, Heun

B = 24
SOLVERS = [Euler(), Heun()]


class Normal(nn.Module):
    """The denoiser of normal data of s.d. 0.5, around the mean that a label tells; keeps the sizes of its calls."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x, sigma, labels=None):
        self.sizes.append(len(x))
        mean = 0 if labels is None else per_image(labels @ torch.arange(3.0).double(), x)
        return mean + (x - mean) * per_image(0.25 / (0.25 + sigma**2), x)


def step(N, seed=0, labels=False):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, B, 2, 3, 3, generator=generator, dtype=torch.float64)
    levels = KarrasUniform(curricula.Constant(N))(BatchRandom(seed, 0, B, slice(0, B)), 0, 1)
    levels.high, levels.low = levels.grid[levels.index + 1], levels.grid[levels.index]
    onehot = torch.eye(3).double()[torch.arange(B) % 3] if labels else None
    return step_of(x, noise, levels, onehot)


def one_by_one(step, solver, x, first, last):
    """The teacher's ODE from level first to last of the grid, row by row."""
    grid, rows = step.levels.grid.tolist(), []
    for i in range(B):
        y, labels = x[i : i + 1], None if step.labels is None else step.labels[i : i + 1]
        for m in range(first[i], last[i], -1):
            y = solver(lambda z, sigma, labels=labels: Normal()(z, sigma, labels), y, grid[m], grid[m - 1])
        rows.append(y)
    return torch.cat(rows)


@pytest.mark.parametrize("solver", SOLVERS, ids=["Euler", "Heun"])
@pytest.mark.parametrize("labels", [False, True])
def test_every_row_goes_from_its_own_level_to_the_end(solver, labels):
    direct, case = method(DirectConsistency, nn.Identity(), Normal(), solver=solver), step(9, labels=labels)
    n = (case.levels.index + 1).tolist()
    assert len(set(n)) > 4
    assert_close(direct.target(case), one_by_one(case, solver, case.x_t, n, [0] * B))
    assert direct.teacher_calls == solver.calls * sum(n)  # no row is evaluated that is not on its way
    assert max(direct._teacher[0].sizes) <= B


@pytest.mark.parametrize("solver", SOLVERS, ids=["Euler", "Heun"])
def test_mid_training_is_on_the_trajectories_from_pure_noise(solver):
    mid, case = method(MidTraining, nn.Identity(), Normal(), solver=solver), step(9, labels=True)
    n, start = (case.levels.index + 1).tolist(), 80 * case.noise
    case.x_t = mid.network_input(case)
    assert_close(case.x_t, one_by_one(case, solver, start, [8] * B, n))
    assert torch.equal(case.x_t[case.levels.index == 7], start[case.levels.index == 7])
    assert_close(mid.target(case), one_by_one(case, solver, start, [8] * B, [0] * B))
    assert mid.teacher_calls == 8 * B * solver.calls


@pytest.mark.parametrize("solver", SOLVERS, ids=["Euler", "Heun"])
def test_on_two_levels_it_is_consistency_distillation(solver):
    """f is the identity at the lowest level, so that both have the same target: its twin differs in nothing else."""
    student, case = Preconditioned(nn.Module(), Boundary()), step(2)
    student.network.forward = lambda x, c_noise, labels, augment: x.sin()
    direct, twin = (
        method(kind, student, Normal(), solver=solver) for kind in (DirectConsistency, ConsistencyDistillation)
    )
    assert_close(direct.target(case), twin.target(case))


def test_a_part_that_the_method_does_not_use_is_refused():
    with pytest.raises(ValueError, match="DirectConsistency needs a teacher"):
        method(DirectConsistency, nn.Identity(), solver=Euler())
    with pytest.raises(ValueError, match="DirectConsistency has no target network: target_ema must be None"):
        method(DirectConsistency, nn.Identity(), teacher=Normal(), solver=Euler(), target_ema=lambda k, K: 0.5)
