"""TCM: which model gives a target, which rows lie at the transition, and where the model may be called."""

import copy
import math

import pytest
import torch
from jobs import TINY, config_of, run
from methods.steps import method, step_of
from torch import nn
from torch.testing import assert_close

from consistency_models import load
from consistency_models.app.build import build_method
from consistency_models.app.tasks.sample_workers import samplers_of
from consistency_models.errors import ConfigError, Exit
from consistency_models.losses.distances import PseudoHuber
from consistency_models.losses.weightings import InverseGap
from consistency_models.methods.ect import EasyConsistencyTuning
from consistency_models.methods.tcm import TruncatedConsistency
from consistency_models.networks.mlp import MLP
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM
from consistency_models.noise.schedules import ECTSchedule, Levels
from consistency_models.noise.truncated import TruncatedStudentT
from consistency_models.random import BatchRandom
from consistency_models.sampling.samplers import Consistency
from consistency_models.storage.checkpoints import read

T = torch.tensor([1.0, 1.0, 1.02, 3.0, 40.0], dtype=torch.float64)
S = torch.tensor([0.7, 0.99, 0.9, 1.0, 30.0], dtype=torch.float64)


def model_of(seed, dropout=0.0):
    torch.manual_seed(seed)
    network = MLP(2, 3, dropout=dropout, width=16, depth=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Preconditioned(network, EDM()).double()


def step_at(high=T, low=S):
    x, noise = torch.randn(2, len(high), 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = step_of(x, noise, Levels(high, low))
    step.rows = BatchRandom(0, 0, len(high), slice(0, len(high)))
    return step


def truncated(student, first, **arguments):
    arguments = {"distance": PseudoHuber(0.0), "weighting": InverseGap(), "transition": 1.0} | arguments
    return method(TruncatedConsistency, student, first, **arguments)


def test_below_the_transition_the_target_is_the_first_stage_s_to_the_last_bit():
    student, first, step = model_of(0), model_of(1).requires_grad_(False), step_at()
    of = truncated(student, first)
    online = of.online(step)
    with torch.no_grad():
        target = of.target(step)
    below = S < 1
    assert torch.equal(target[below], first(step.at(S), S)[below])
    assert torch.equal(target[~below], student(step.at(S), S).detach()[~below])  # s = t' is the student's
    of.loss(step, online, target).mean().backward()
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_with_transition_0_and_no_rows_at_it_it_is_ect():
    schedule = TruncatedStudentT(0.0, 0.002, mean=-1.1, scale=2.0, df=math.inf, limit=0.9999, first_stage=4, share=0.0)
    ect, rows = ECTSchedule(stages=8), BatchRandom(0, 3, 64, slice(0, 64))
    levels = schedule(rows, 0, 1)
    assert_close(levels.low, ect.low(levels.high.double(), 4).clamp(min=1e-6).float())
    assert torch.equal(levels.weight, torch.ones(64))
    student, step = model_of(0), step_at()
    ours, theirs = truncated(student, model_of(1), transition=0.0), method(EasyConsistencyTuning, student)
    with torch.no_grad():
        assert torch.equal(ours.target(step), theirs.target(step))


def test_the_gap_stops_closing_at_the_limit():
    schedule = TruncatedStudentT(limit=0.99, first_stage=2, stages=8)
    gaps = [1 - schedule.low(torch.tensor([80.0]), schedule.stage(k, 8)).item() / 80 for k in range(8)]
    assert gaps == pytest.approx([2.0**-a if a < 7 else 0.01 for a in range(3, 11)], rel=1e-5)


@pytest.mark.parametrize(("total", "share", "count"), [(64, 0.25, 16), (10, 0.25, 2), (100, 0.29, 29), (8, 0.0, 0)])
def test_rows_at_the_transition_are_a_matter_of_their_place_in_the_global_batch(total, share, count):
    schedule = TruncatedStudentT(transition=1.3, sigma_min=1.5, share=share, boundary_weight=0.1)
    whole = schedule(BatchRandom(0, 5, total, slice(0, total)), 0, 1)
    boundary = whole.high == torch.tensor(1.3)
    assert boundary.sum() == count
    assert whole.high[~boundary].min() >= 1.5
    halves = [schedule(BatchRandom(0, 5, total, slice(*ends)), 0, 1) for ends in ((0, total // 2), (total // 2, total))]
    for name in ("high", "low", "weight"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))
    assert abs(int((halves[0].high == torch.tensor(1.3)).sum()) - count / 2) <= 0.5  # no process has them all
    loss = torch.rand(total, generator=torch.Generator().manual_seed(0))
    expected = loss[~boundary].mean() + (0.1 * loss[boundary].mean() if count else 0)
    assert_close((whole.weight * loss).mean(), expected)


def test_a_batch_without_a_row_at_the_transition_is_refused():
    with pytest.raises(ValueError, match=r"batch of 3 has no row at the transition with share 0\.25"):
        TruncatedStudentT()(BatchRandom(0, 0, 3, slice(0, 3)), 0, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"share": 1.0}, {"limit": 1.0}, {"df": 0.0}, {"scale": 0.0}, {"q": 1.0}, {"sigma_min": 90.0}, {"stages": 0}),
        *({"boundary_weight": -1.0}, {"transition": math.nan}, {"mean": math.inf}, {"first_stage": -1}),
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_numbers_without_meaning_are_refused(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} must be .*; got {value}|{name}={value} is not allowed"):
        TruncatedStudentT(**arguments)


def test_both_models_have_the_student_s_dropout_masks():
    student, step = model_of(0, dropout=0.5).train(), step_at()
    first = copy.deepcopy(student)
    targets = []
    for transition in (0.0, 1.0, 100.0):
        step.rows.seed_dropout()
        with torch.no_grad():
            targets.append(truncated(student, first, transition=transition).target(step))
    assert torch.equal(targets[0], targets[1])
    assert torch.equal(targets[0], targets[2])
    assert not torch.equal(targets[0], first(step.at(S), S))


DIGITS = (*TINY, "data=digits", "data.batch_size=8", "network.model_channels=8", "network.dropout=0.1")
SHORT = ("trainer.max_steps=2", "evaluation.n=64", "evaluation.ode_points=16")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A first stage, and a second one from it."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    assert run(first, *DIGITS, *SHORT, "model=ect") == Exit.DONE
    arguments = (*DIGITS, *SHORT, "model=tcm", "teacher=run", f"teacher.path={first}")
    assert run(second, *arguments) == Exit.DONE
    return first, second, arguments


def test_a_second_stage_starts_from_the_first(stages, tmp_path, recwarn):
    first, _, arguments = stages
    built = build_method(config_of(tmp_path, *arguments))
    assert not [warning for warning in recwarn if "teacher.path" in str(warning.message)]
    average = read(first / "checkpoints/last.ckpt")["ema"]["0.995"]
    weights = built.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    built.on_fit_start()
    assert built._teacher[0].training
    assert not any(parameter.requires_grad for parameter in built._teacher[0].parameters())


def test_levels_below_the_transition_are_refused_when_it_is_sampled(stages):
    _, second, _ = stages
    generator = load(second)
    assert generator.lowest == 1.0
    assert generator.sample(2, steps=2).shape == (2, 1, 8, 8)
    assert min(generator.make_sampler(steps=2).sigmas) >= 1
    with pytest.raises(ValueError, match=r"trained on levels from 1 up; got 0\.5"):
        generator.sample(2, sampler=Consistency((80.0, 0.5), 0.0))
    assert len(samplers_of({"sigmas": [80.0, 1.0], "steps": None}, generator)) == 1
    with pytest.raises(ConfigError, match=r"sigmas=\[80\.0,0\.5\] is not allowed: .* Allowed: levels from 1 up"):
        samplers_of({"sigmas": [80.0, 0.5], "steps": None}, generator)
    solver = generator.solver(1)
    x = torch.zeros(2, 1, 8, 8)
    assert solver(x, torch.ones(2), torch.eye(10)[:2]).shape == x.shape
    with pytest.raises(ValueError, match="levels from 1 up"):
        solver(x, torch.full((2,), 0.99), torch.eye(10)[:2])
