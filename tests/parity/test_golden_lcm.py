"""LCM's and Direct CM's training steps: `ConsistencyDistillation` and `DirectConsistency` on the levels of a table."""

import pytest
import torch
from methods.steps import method, step_of
from parity.golden import cases, expect, load
from parity.tables import EXACT, TextNet, prompts, said, scalings
from torch.testing import assert_close

from consistency_models.losses import ElementwiseHuber, SquaredL2
from consistency_models.methods.cd import ConsistencyDistillation
from consistency_models.methods.dcm import DirectConsistency
from consistency_models.networks.diffusers import guidance_embedding
from consistency_models.noise import Discrete, Levels, Preconditioned, TableUniform
from consistency_models.noise.table_uniform import table_indices
from consistency_models.sampling import solvers
from consistency_models.teachers import Guided


@pytest.mark.parametrize(("path", "dim"), cases(r"w_embedding_(\d+)"))
def test_embedding_of_w(path, dim):
    case = load(path)
    expect(guidance_embedding(case["w"], int(dim)), case, f"w_embedding_{dim}", rtol=0, atol=2e-6)


def lcm_step(path, i):
    case = load(path)
    args = said(case, f"{i}_args")
    grid = TableUniform(scalings(args), args["steps"]).grid(args["steps"] + 1)
    index = case[f"{i}_index"]
    levels = Levels(high=grid[index + 1], low=grid[index], index=index, grid=grid)
    return case, args, levels


@pytest.mark.parametrize(("path", "i"), cases(r"(\d+)_prediction", r"teacher\.text\.weight"))
def test_step_of_lcm(path, i):
    case, args, levels = lcm_step(path, i)
    table = scalings(args)
    expect(table.table, case, f"{i}_alphas_cumprod", rtol=0, atol=0)
    expect(table_indices(len(table.table), args["steps"]), case, f"{i}_ddim_timesteps", rtol=0, atol=0)
    expect(table.c_in(levels.grid[:-1]).square(), case, f"{i}_alphas_cumprod_prev", **EXACT)
    assert table.timestep(levels.high).tolist() == case[f"{i}_high"].tolist()
    assert table.timestep(levels.low).tolist() == case[f"{i}_low"].tolist()

    teacher = Preconditioned(TextNet(case, "teacher"), table)
    teacher.origin = {}
    student, target = (
        Preconditioned(TextNet(case, name), scalings(args, boundary=args.get("timestep_scaling", 10.0)))
        for name in ("online", "target")
    )
    labels = prompts(case, case["w"], case["w_embedding"])
    lcm = method(
        ConsistencyDistillation,
        student,
        Guided(teacher, None),
        ElementwiseHuber(args.get("huber_c", 0.001)),
        solver=solvers.Euler(),
        target_ema=lambda k, K: 0.95,
    )
    lcm.target_copy.load_state_dict(target.state_dict())
    step = step_of(case["x"], case["noise"], levels, labels)
    expect(step.x_t * (1 + levels.high.view(-1, 1, 1, 1) ** 2).rsqrt(), case, f"{i}_noisy", **EXACT)
    for name, condition in (("teacher", labels), ("teacher_empty", labels.unconditional())):
        output = teacher.network(case[f"{i}_noisy"], case[f"{i}_high"].double(), condition)
        expect(output, case, f"{i}_{name}", **EXACT)
    online = lcm.online(step)
    with torch.no_grad():
        aim = lcm.target(step)
        solved = lcm.solver(lambda x, s: lcm.teacher(x, s, labels), step.x_t, levels.high, levels.low)
    scale = max(1.0, *(case[f"{i}_{name}"].abs().max().item() for name in ("solved", "prediction", "target")))
    for ours, name in (
        (solved * (1 + levels.low.view(-1, 1, 1, 1) ** 2).rsqrt(), "solved"),
        (online, "prediction"),
        (aim, "target"),
    ):
        assert_close(ours / scale, case[f"{i}_{name}"] / scale, msg=lambda m, name=name: f"{name}: {m}", **EXACT)
    expect(SquaredL2()(online, aim).mean(), case, f"{i}_l2", rtol=1e-6, atol=0)
    loss = lcm.loss(step, online, aim)
    expect(loss.mean(), case, f"{i}_huber", rtol=1e-6, atol=0)
    names, parameters = zip(*student.network.named_parameters())
    gradients = dict(zip(names, torch.autograd.grad(loss.mean(), parameters)))
    start = f"{i}_grad_huber_"
    for name in [key.removeprefix(start) for key in case if key.startswith(start)]:
        gradient, expected = gradients[name], case[start + name]
        largest = expected.abs().max().item()
        # where online output and target are near, the error of their difference, and of its direction, is larger
        assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * largest, msg=lambda m, name=name: f"{name}: {m}")


class OneHigher(Discrete):
    """direct-cms names a level one higher than diffusers."""

    def timestep(self, sigma):
        return super().timestep(sigma) + 1


@pytest.mark.parametrize(("path", "i"), cases(r"(\d+)_end_ddim"))
def test_step_of_direct_cm(path, i):
    case = load(path)
    args, config = said(case, f"{i}_args"), said(case, "config")
    table, N = scalings(config, kind=OneHigher), args["N"]
    boundary, grid = args.get("timestep_scaling", 10.0), TableUniform(table, N, "zero").grid(N + 1)
    index = torch.searchsorted(grid, table.sigmas[case[f"{i}_start"] - 1]) - 1
    levels = Levels(high=grid[index + 1], low=grid[index], index=index, grid=grid)
    assert sorted(case[f"{i}_start_timesteps"].tolist()) == table.timestep(grid[1:]).tolist()
    for name, level in (("start", grid[1:].flip(0)), ("next", grid[:-1].flip(0))):
        alphas = table.c_in(level)
        expect(alphas, case, f"{i}_ddim_alphas_{name}", check_dtype=False, **EXACT)
        expect(level * alphas, case, f"{i}_ddim_sigmas_{name}", check_dtype=False, **EXACT)

    teacher = Preconditioned(TextNet(case, "net"), table)
    teacher.origin = {}
    student = Preconditioned(TextNet(case, "online"), scalings(config, boundary=boundary, kind=OneHigher))
    direct = method(DirectConsistency, student, Guided(teacher, args["w"]), solver=solvers.Euler())
    step = step_of(case["x"], case["noise"], levels, prompts(case))
    expect(step.x_t * (1 + levels.high.view(-1, 1, 1, 1) ** 2).rsqrt(), case, f"{i}_noisy", **EXACT)
    online = direct.online(step)
    with torch.no_grad():
        end = direct.target(step)
    scale = max(1.0, case[f"{i}_end_ddim"].abs().max().item())
    assert_close(end / scale, case[f"{i}_end_ddim"] / scale, **EXACT)
    expect(online, case, f"{i}_prediction", rtol=1e-6, atol=1e-6 * online.abs().max().item())
    expect(direct.loss(step, online, end).mean(), case, f"{i}_l2_ddim", rtol=1e-6, atol=0)
    assert direct.teacher_calls == 2 * (index + 1).sum()  # guidance calls the network twice
