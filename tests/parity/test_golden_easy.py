"""Easy consistency tuning against its official code."""

import pytest
import torch
from methods.steps import method, step_of
from parity.golden import cases, expect, load
from parity.test_golden_scalings import EDMInner
from torch.testing import assert_close

from consistency_models.losses.distances import PseudoHuber
from consistency_models.losses.weightings import EDM as EDMWeight
from consistency_models.losses.weightings import InverseGap
from consistency_models.methods.ect import EasyConsistencyTuning
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary
from consistency_models.noise.schedules import ECTSchedule, Levels, per_image
from consistency_models.sampling.samplers import Consistency

NAMES = {"P_mean": "mean", "P_std": "std", "q": "q", "k": "slope", "b": "steepness"}


def closing(arguments):
    """The official arguments as ours; a constant n(t) = 1 is slope 0."""
    ours = {NAMES[name]: value for name, value in arguments.items() if name in NAMES}
    return ECTSchedule(**ours | ({"slope": 0.0} if arguments.get("adj") == "const" else {}), stages=1)


@pytest.mark.parametrize(("path", "name"), cases(r"(.+)/r", r"stages"))
def test_mapping(path, name):
    case = load(path)
    schedule, t = closing(case["meta"]["cfgs"][name]), case["t"].double()
    for stage, expected in zip(case["stages"].tolist(), case[f"{name}/r"]):
        error = (schedule.low(t, stage) - expected).abs()  # officially float32: r is a difference of numbers near t
        assert (error <= 2e-6 * expected + 1e-6 * t).all()
    if f"{name}/ratio" in case:
        ratios = [1 - schedule.q ** -(stage + 1) for stage in case["stages"].tolist()]
        expect(torch.tensor(ratios, dtype=torch.float64), case, f"{name}/ratio", rtol=1e-12, atol=0)


@pytest.mark.parametrize(("path", "name"), cases(r"(.+)/loss", r".+/eps", r".+/r"))
def test_loss(path, name, fixed_rows):
    case = load(path)
    setting = case["meta"]["cases"][name]
    draw, t, r = (case[f"{name}/{key}"].flatten() for key in ("rnd_normal", "t", "r"))
    of_imagenet = f"{name}/wt" in case  # the branch with EDM's weight and q = 4
    schedule = closing({"q": 4} | setting["kwargs"] if of_imagenet else setting["kwargs"])
    assert_close(schedule(fixed_rows(draw), 0, 1).high, t, rtol=2e-6, atol=0)
    assert_close(schedule.low(t, setting["stage"]), r, rtol=1e-5, atol=1e-6 * t.max().item())
    levels, labels = Levels(high=t, low=r), case.get("labels")
    weighting = EDMWeight(setting["kwargs"].get("sigma_data", 0.5)) if of_imagenet else InverseGap()
    model = Preconditioned(EDMInner(), EDM())
    easy = method(
        EasyConsistencyTuning, model, distance=PseudoHuber(setting["kwargs"].get("c", 0.0)), weighting=weighting
    )
    step = step_of(case["images"], case[f"{name}/eps"], levels, labels)
    online, target = model(step.x_t, t, labels), easy.target(step)
    if f"{name}/D_yt" in case:
        expect(online, case, f"{name}/D_yt", rtol=1e-5, atol=1e-5)
        raw = case[f"{name}/D_yr_raw"]
        assert_close(target, torch.where(per_image(r > 0, raw), raw, case["images"]), rtol=1e-5, atol=1e-5)
    if of_imagenet:
        assert_close(weighting(levels), case[f"{name}/wt"].flatten(), rtol=1e-5, atol=0)
    expected = case[f"{name}/loss"]
    assert_close(easy.loss(step, online, target), expected, rtol=2e-4, atol=1e-5 * expected.max().item())
    if "mean_loss" in setting:
        assert_close(easy.loss(step, online, target).mean().item(), setting["mean_loss"], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("path", "mode"), cases(r"precond/D_(train|eval)", r"precond/x"))
def test_scalings_of_training_and_of_evaluation(path, mode):
    """The official model is EDM's in training and the boundary form, with a sigma_min of its own, in evaluation."""
    case, scalings = load(path), {"train": EDM(), "eval": Boundary(sigma_min=0.003)}
    expected = case[f"precond/D_{mode}"]
    got = Preconditioned(EDMInner(), scalings[mode])(case["precond/x"], case["precond/sigma"])
    assert_close(got, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(("path", "name"), cases(r"gen/(.+)/out", r"gen/latents"))
def test_noise_is_added_without_a_floor(path, name):
    case = load(path)
    setting = case["meta"][f"gen/{name}"]
    labels = torch.eye(case["labels"].shape[1])[: len(case["gen/latents"])] if "labels" in case else None
    sampler = Consistency((setting["t_max"], *(setting.get("mid_t") or ())), sigma_min=0.0)
    model = Preconditioned(EDMInner(), Boundary(sigma_min=0.003))
    draws = (case[f"gen/{name}/noise{i}"] for i in range(sampler.nfe - 1))
    images = sampler(lambda x, sigma: model(x, sigma, labels), case["gen/latents"], lambda: next(draws))
    expected = case[f"gen/{name}/out"].float()
    assert_close(images, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
