"""Multistep consistency models: the printed algorithm, its limits, and TRACT's phases."""

import pytest
import torch
from methods.steps import Answers, method, step_of
from torch import nn
from torch.testing import assert_close

from consistency_models.conditions import Prompt
from consistency_models.losses.distances import PseudoHuber, SquaredL2
from consistency_models.losses.weightings import SNRPlusOne
from consistency_models.methods.mcm import MultistepConsistency
from consistency_models.noise.schedules import Levels, karras_grid, per_image
from consistency_models.noise.segments import Phases
from consistency_models.sampling.guidance import Guided
from consistency_models.sampling.solvers import ADDIM, Euler, Heun

T = torch.tensor([80.0, 1.0, 0.5, 2.0, 0.002, 7.0])
S = torch.tensor([60.0, 0.9, 0.0, 1.0, 0.001, 3.0])
P = torch.tensor([0.0, 0.4, 0.0, 1.0, 0.0, 2.9])
SOLVERS = [None, Euler(), Heun(), ADDIM(), ADDIM(eta=None)]
NAMES = ["data", "Euler", "Heun", "ADDIM", "ADDIM without clean images"]


def images(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)


class Shrinks(nn.Module):
    """f(x, σ) = x/(1 + σ²): the denoiser of standard normal data. Not to be asked at level 0."""

    def forward(self, x, sigma, labels=None, augment=None):
        assert (sigma > 0).all()
        return x / per_image(1 + sigma**2, x)


def target_of(solver, levels, model=None, dtype=torch.float32):
    multistep = method(
        MultistepConsistency, model or Shrinks(), None if solver is None else Shrinks(), solver=solver or Euler()
    )
    moved = levels.to("cpu", dtype)
    step = step_of(images(0, dtype), images(1, dtype), moved)
    return step, multistep.target(step)


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_target_is_the_printed_algorithm(solver):
    """DDIM from s to p, then what DDIM must see at t to get there."""
    inside = (S > P) & (P > 0)
    step, target = target_of(solver, Levels(T, S, P), dtype=torch.float64)
    t, s, p = (per_image(level.double(), step.x) for level in (T, S, P))
    if solver is None:
        x_s = step.at(S.double())
    else:
        x_s = step.x_t + (s - t) * solver.slope(Shrinks(), step.x_t, T.double(), S.double(), step.x)
    reference = Shrinks()(x_s, torch.where(S > 0, S, T).double())
    at_p = reference + p / s * (x_s - reference)
    expected = (at_p - p / t * step.x_t) / (1 - p / t)
    assert_close(target[inside], expected[inside])


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_the_end_at_level_0_gives_the_reference_bit_for_bit(solver):
    answer = images(2)
    _, target = target_of(solver, Levels(T, S, P), Answers(answer))
    rows = (P == 0) & (S > 0)
    assert rows.any()
    assert torch.equal(target[rows], answer[rows])


@pytest.mark.parametrize("solver", [None, Euler()], ids=["data", "Euler"])
def test_one_step_from_the_end_gives_the_image_of_the_step(solver):
    step, target = target_of(solver, Levels(T, S, P))
    rows = S == P
    assert rows.sum() == 2
    assert (S[rows] == 0).any()
    expected = step.x if solver is None else Shrinks()(step.x_t, T)
    if solver is None:
        assert torch.equal(target[rows], expected[rows])
    assert_close(target[rows], expected[rows], rtol=1e-6, atol=1e-6)


def test_one_step_from_the_end_adjusted_ddim_adds_its_noise():
    step, target = target_of(ADDIM(), Levels(T, S, P), dtype=torch.float64)
    rows = S == P
    t, s, x = per_image(T, step.x)[rows].double(), per_image(S, step.x)[rows].double(), step.x[rows]
    denoised = Shrinks()(step.x_t, T.double())[rows]
    noise = (step.x_t[rows] - denoised) / t
    variance = 0.75 * (denoised - x).square().flatten(1).mean(1)
    norm = noise.square().flatten(1).mean(1)
    sigma = (s**2 + per_image(variance / norm, x) * (1 - s / t) ** 2).sqrt()
    assert_close(target[rows], denoised + (sigma - s) / (1 - s / t) * noise)


@pytest.mark.parametrize("guidance", [3.0, None], ids=["one scale", "a scale of each row"])
def test_adjusted_ddim_takes_its_variance_from_the_teacher_without_guidance(guidance):
    """Algorithm 1 of the paper: x_T is the guided output, and x_var = η‖x_T' - x‖²/d, x_T' without guidance."""
    teacher, labels = Guided(Shrinks(), guidance, Answers(images(2, torch.float64))), None
    if guidance is None:
        labels = Prompt(torch.zeros(6, 1, 1), guidance=torch.linspace(0, 5, 6))
    multistep = method(MultistepConsistency, Answers(images(3, torch.float64)), teacher)
    step = step_of(*(images(k, torch.float64) for k in (0, 1)), Levels(T, S, P).to("cpu", torch.float64), labels)
    t, s = (per_image(level.double(), step.x) for level in (T, S))
    guided, unguided = teacher(step.x_t, T.double(), labels, with_unguided=True)
    assert torch.equal(unguided, Shrinks()(step.x_t, T.double()))
    noise = (step.x_t - guided) / t
    ratio = 0.75 * (unguided - step.x).square().flatten(1).mean(1) / noise.square().flatten(1).mean(1)
    multistep.target(step)
    assert multistep.teacher_calls == 12
    ((x_s, _),) = multistep.model.asked
    assert_close(x_s, guided + (s**2 + (1 - s / t) ** 2 * per_image(ratio, step.x)).sqrt() * noise)


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_the_network_is_never_called_at_level_0_and_nothing_is_nan(solver):
    """Levels as near to each other and to 0 as float32 can tell; `Shrinks` asserts what it is asked."""
    high = torch.tensor([1e-3, 1e-3, 80.0, 80.0, 1.0, 1.0])
    low = torch.tensor([0.0, 0.0, 0.0, 79.99999, 0.9999999, 0.5])
    end = torch.tensor([0.0, 0.0, 0.0, 79.99999, 0.9999998, 0.4999999])
    _, target = target_of(solver, Levels(high, low, end))
    assert torch.isfinite(target).all()
    assert target.abs().max() < 1e3


def test_weight_inside_or_outside_the_norm():
    levels = Levels(T, S, P)
    online, target = images(3), images(4)
    step = step_of(images(0), images(1), levels)
    weight, norm = SNRPlusOne()(levels), (online - target).flatten(1).norm(dim=1)
    arguments = {"distance": PseudoHuber(0.0), "weighting": SNRPlusOne()}
    outside = method(MultistepConsistency, Shrinks(), **arguments)
    inside = method(MultistepConsistency, Shrinks(), weight_inside=True, **arguments)
    assert_close(outside.loss(step, online, target), weight * norm)
    assert_close(inside.loss(step, online, target), weight.sqrt() * norm)
    squared = [
        method(MultistepConsistency, Shrinks(), weight_inside=flag, distance=SquaredL2(), weighting=SNRPlusOne())
        for flag in (False, True)
    ]
    assert_close(*(each.loss(step, online, target) for each in squared))  # for a squared norm they are the same


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x, sigma, labels=None, augment=None):
        return self.factor * x


def phased():
    multistep = method(MultistepConsistency, Scaled(0.5), Scaled(1.0), target_ema=lambda k, K: 0.5)
    multistep.schedule = Phases([16, 4], 1, karras_grid)
    multistep.target_copy.factor.data.fill_(0.75)
    return multistep


def test_at_the_next_phase_the_target_network_becomes_the_teacher():
    multistep, x = phased(), images(0)
    for k, factor in ((0, 1.0), (49, 1.0), (50, 0.75), (99, 0.75)):
        multistep.on_step_start(k, 100)
        assert_close(multistep.teacher(x, T), factor * x)
    multistep.target_copy.factor.data.fill_(9.0)  # which the teacher does not follow
    multistep.on_step_start(99, 100)
    assert_close(multistep.teacher(x, T), 0.75 * x)
    assert not any(p.requires_grad for p in multistep._teacher[0].parameters())
    assert not any(name.startswith("_teacher") for name in multistep.state_dict())


@pytest.mark.parametrize("solver", [Heun(), ADDIM()])
def test_a_trained_teacher_is_asked_once_at_t(solver):
    """It is exact for one step to the end of its segment, so a solver that also asks it at s would be wrong."""
    multistep, euler = phased(), phased()
    multistep.solver, euler.solver = solver, Euler()
    for each in (multistep, euler):
        each._teacher[0].factor.data.fill_(0.5)
    step = step_of(images(0), images(1), Levels(T, S, P))
    targets = []
    for k in (0, 60):
        for each in (multistep, euler):
            each.on_step_start(k, 100)
            targets.append(each.target(step))
    assert (targets[0] - targets[1]).abs().max() > 1e-6
    assert torch.equal(targets[2], targets[3])


def test_the_teacher_of_a_phase_is_in_the_checkpoint_and_one_from_outside_is_not():
    first, second, content = phased(), phased(), {}
    first.on_save_checkpoint(content)
    assert content == {}
    first.on_step_start(60, 100)
    first.on_save_checkpoint(content)
    first.target_copy.factor.data.fill_(9.0)
    second.on_load_checkpoint(content)
    second.on_step_start(61, 100)
    assert_close(second.teacher(images(0), T), 0.75 * images(0))
