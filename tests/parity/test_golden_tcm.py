"""Both stages of TCM against the official code: levels, targets, losses, gradients."""

import math

import pytest
import torch
from methods.steps import method, step_of
from parity.beyond import ConvNet, settings
from parity.golden import cases, check_gradients, expect, load

from consistency_models.losses.distances import PseudoHuber
from consistency_models.losses.weightings import EDM as EDMWeight
from consistency_models.losses.weightings import InverseGap, Uniform
from consistency_models.methods.tcm import TruncatedConsistency
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM
from consistency_models.noise.truncated import TruncatedStudentT
from consistency_models.random import BatchRandom

CASES = cases(r"case(\d+)_boundary", r"stage1\.conv1\.weight")
EXACT = {"rtol": 1e-9, "atol": 1e-11}
OFFICIAL = 1e-8  # what the official code adds to the transition of the rows at it


class Weight(EDMWeight):
    """1/c_out, where `EDM` is its square."""

    def __call__(self, levels):
        return super().__call__(levels).sqrt()


def squared_norm(x, y):
    return (x - y).square().flatten(1).sum(1)


def schedule_of(file, setting):
    """The schedule of a case. A case without rows at the transition has no first stage either."""
    return TruncatedStudentT(
        transition=(setting["transition_t"] or 0.0) + OFFICIAL,
        sigma_min=setting["t_lower"],
        sigma_max=setting["t_upper"],
        mean=setting["P_mean"],
        scale=setting["P_std"],
        df=setting["df"] if setting["tdist"] == "t" else math.inf,
        q=setting["q"],
        limit=setting["ratio_limit"],
        first_stage=setting["stage"],
        share=setting["boundary_prob"] or 0.0,
        boundary_weight=file.get("w_boundary", torch.tensor(0.1)).item(),
    )


@pytest.mark.parametrize(("path", "number"), CASES)
def test_levels_target_loss_and_gradients(path, number):
    file = load(path)
    prefix, setting = settings(file)[int(number)]
    x0, boundary, sigma_data = file["x0"], file[f"{prefix}boundary"], file["sigma_data"].item()
    schedule = schedule_of(file, setting)
    levels = schedule.levels(file[f"{prefix}u"], boundary, boundary.double().mean().item(), schedule.stage(0, 1))
    expect(levels.high, file, f"{prefix}t", **EXACT)
    expect(levels.low, file, f"{prefix}s", **EXACT)

    distill = setting.get("distill", False)
    networks = {name: ConvNet(file, name) for name in ("net", "stage1", *(["teacher"] if distill else []))}
    models = {name: Preconditioned(network, EDM(sigma_data)) for name, network in networks.items()}
    weighting = {
        "default": InverseGap(),
        "cout_sq": EDMWeight(sigma_data),
        "cout": Weight(sigma_data),
        "one": Uniform(),
    }[setting["weighting"]]
    truncated = method(
        TruncatedConsistency,
        models["net"],
        models["stage1"],
        distance=PseudoHuber(setting["c"]) if setting.get("sqrt", True) else squared_norm,
        weighting=weighting,
        transition=setting["transition_t"] or 0.0,
        diffusion=models["teacher"] if distill else None,
    )
    step = step_of(x0, file["noise"], levels)
    step.rows = BatchRandom(0, 0, len(x0), slice(0, len(x0)))
    online = truncated.online(step)
    expect(online.detach(), file, f"{prefix}online", **EXACT)
    with torch.no_grad():
        target = truncated.target(step)
    expect(target, file, f"{prefix}target", **EXACT)
    loss = truncated.loss(step, online, target)
    expect(loss.detach(), file, f"{prefix}loss", **EXACT)
    expect(loss[~boundary].detach(), file, f"{prefix}official_loss_consistency", **EXACT)
    expect(loss[boundary].detach(), file, f"{prefix}official_loss_boundary", **EXACT)
    weighted = levels.weight * loss
    expect(weighted.mean().detach(), file, f"{prefix}total", **EXACT)
    count = sum(key.startswith(f"{prefix}grad_") for key in file)
    assert check_gradients(weighted, networks["net"], file, f"{prefix}grad_", **EXACT) == count


@pytest.mark.parametrize(("path", "which"), cases(r"law_t_student(|_2)", r"law_u"))
def test_quantiles_of_the_law(path, which):
    file, arguments = load(path), {}
    if which:
        arguments = dict(zip(("sigma_min", "sigma_max", "mean", "scale", "df"), file[f"law{which}"].tolist()))
    expect(TruncatedStudentT(**arguments).quantile(file["law_u"]), file, f"law_t_student{which}", **EXACT)
