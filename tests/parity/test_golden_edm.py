"""EDM, and what it restates of other work: preconditionings of VP, VE and iDDPM, the losses, and the samplers."""

import re
from functools import partial
from math import inf

import pytest
import torch
from parity.golden import cases, class_labels, expect, load
from parity.test_golden_scalings import EDMInner
from torch.testing import assert_close

from consistency_models.losses import distances, weightings
from consistency_models.networks import official
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, IDDPM, VE, VP
from consistency_models.noise.schedules import Levels, LogNormal, per_image
from consistency_models.sampling.general_ode import VE as VESchedule
from consistency_models.sampling.general_ode import VP as VPSchedule
from consistency_models.sampling.general_ode import (
    GeneralODESampler,
    Linear,
    edm_levels,
    iddpm_levels,
    ve_levels,
    vp_levels,
)
from consistency_models.sampling.samplers import Heun

MAKE = {"EDM": EDM, "VP": VP, "VE": VE, "iDDPM": IDDPM}


def scalings_of(name):
    """The preconditioning that a file calls "VPPrecond", "EDMPrecond_sd0.7" or "EDMPrecond_sd0.7_uncond"."""
    kind, sigma_data = re.match(r"(.+)Precond(?:_sd([\d.]+))?", name).groups()
    return MAKE[kind](*([float(sigma_data)] if sigma_data else []))


PRECOND = r"((?:EDM|VP|VE|iDDPM)Precond(?:_sd[\d.]+)?(?:_uncond)?)"


@pytest.mark.parametrize(("path", "name", "what"), cases(rf"{PRECOND}/(D|D_nolabel|D_scalar_sigma)"))
def test_denoised(path, name, what):
    case = load(path)
    model = Preconditioned(EDMInner(), scalings_of(name))
    sigma = case["sigma"][3] if what == "D_scalar_sigma" else case["sigma"]
    labelled = what == "D" and not name.endswith("_uncond") and case["meta"].get("label_dim") != 0
    got, expected = model(case["x"], sigma, case.get("class_labels") if labelled else None), case[f"{name}/{what}"]
    # VP's time is officially a float32 logarithm of a number near 1, and the network takes the sine of 999 times it.
    tolerance = 1e-5 if name.startswith("VP") else 1e-6
    assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(("path", "name"), cases(r"(VP|VE|iDDPM)Precond/sigma_min_max"))
def test_range_of_levels(path, name):
    scalings = MAKE[name]()
    got = torch.tensor([scalings.sigma_min, scalings.sigma_max], dtype=torch.float64)
    # officially float32, in which exp(1e-6) - 1 is 9.5e-7 (VP) and the last level of the table has five digits (iDDPM)
    assert_close(got, load(path)[f"{name}Precond/sigma_min_max"], rtol={"VP": 0.03, "VE": 0}.get(name, 1e-5), atol=0)


@pytest.mark.parametrize("path", cases("VPPrecond/sigma_of_t", "VPPrecond/t"))
def test_vp_levels(path):
    case = load(path)
    expect(VP().sigma(case["VPPrecond/t"]), case, "VPPrecond/sigma_of_t", rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", cases("VPPrecond/sigma_inv", "sigma"))
def test_vp_times(path):
    case = load(path)
    expect(VP().time(case["sigma"].double()), case, "VPPrecond/sigma_inv", rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", cases("iDDPMPrecond/u"))
def test_iddpm_table(path):
    assert_close(IDDPM().levels, load(path)["iDDPMPrecond/u"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", cases("iDDPMPrecond/index", "sigma"))
def test_iddpm_index(path):
    case = load(path)
    assert torch.equal(IDDPM().index(case["sigma"]), case["iDDPMPrecond/index"])


@pytest.mark.parametrize("path", cases("iDDPMPrecond/round_sigma", "sigma"))
def test_iddpm_levels(path):
    case, scalings = load(path), IDDPM()
    rounded = scalings.levels[scalings.index(case["sigma"])].double()
    expect(rounded, case, "iDDPMPrecond/round_sigma", rtol=1e-5, atol=0)


def edm_levels_and_weight(draw, P_mean=-1.2, P_std=1.2, sigma_data=0.5):
    """The official loss's levels, and its weight of them."""
    return LogNormal(P_mean, P_std)(draw, 0, 1).high, weightings.EDM(sigma_data)


def vp_levels_and_weight(draw, beta_d=19.9, beta_min=0.1, epsilon_t=1e-5):
    """The same of the VP loss."""
    return VP(beta_d, beta_min).sigma(1 + draw.values * (epsilon_t - 1)), weightings.SNR()


def ve_levels_and_weight(draw, sigma_min=0.02, sigma_max=100.0):
    """The same of the VE loss."""
    return sigma_min * (sigma_max / sigma_min) ** draw.values, weightings.SNR()


DRAWN = {"EDM": edm_levels_and_weight, "VP": vp_levels_and_weight, "VE": ve_levels_and_weight}


@pytest.mark.parametrize(("path", "name", "kind"), cases(r"((EDM|VP|VE)Loss[^/]*)/loss", r".+/unit_noise"))
def test_losses(path, name, kind, fixed_rows):
    """The constants of the loss are the file's. Those of the network's preconditioning are its own."""
    case = load(path)
    said = case["meta"].get(name, {})
    sigma, weighting = DRAWN[kind](fixed_rows(case[f"{name}/rnd"].flatten()), **said.get("kwargs", {}))
    model = Preconditioned(EDMInner(), scalings_of(said.get("precond", f"{kind}Precond")))
    x, expected = case["images"], case[f"{name}/loss"]
    denoised = model(x + per_image(sigma, x) * case[f"{name}/unit_noise"], sigma, case.get("labels"))
    weight, tolerance = weighting(Levels(high=sigma, low=sigma)), 1e-5 * expected.abs().max().item()
    assert_close(per_image(weight, x) * (denoised - x).square(), expected, rtol=1e-5, atol=tolerance)
    per_sample = weight * distances.SquaredL2()(denoised, x)
    assert_close(per_sample, expected.flatten(1).mean(1), rtol=1e-5, atol=tolerance)


def sampler_cases(function):
    """(path, case) for each case of the official function."""
    return [
        pytest.param(*found.values, id=found.id)
        for found in cases(r"(.+)/out", r"latents", r"sd/.+")
        if load(found.values[0])["meta"].get("cases", {}).get(found.values[1], {}).get("fn") == function
    ]


def official_model(case):
    """The network in the preconditioning that the file names, and their lowest and highest level."""
    kwargs, name = dict(case["meta"]["kwargs"]), case["meta"].get("precond", "EDMPrecond")
    if name.startswith("iDDPM"):
        pytest.skip("the official samplers round each level to the table of this network; ours do not")
    channels, scalings = kwargs.pop("img_channels"), scalings_of(name)
    network = getattr(official, kwargs.pop("model_type"))(in_channels=channels, out_channels=channels, **kwargs)
    weights = {key.removeprefix("sd/model."): value for key, value in case.items() if key.startswith("sd/model.")}
    network.load_state_dict(weights)
    ends = getattr(scalings, "sigma_min", 0.0), getattr(scalings, "sigma_max", inf)
    return Preconditioned(network.eval(), scalings), ends


def numbers(kwargs):
    """Arguments of a case; infinity is written "inf"."""
    return {key: inf if value == "inf" else value for key, value in kwargs.items()}


CHURN = {"S_churn": "churn", "S_min": "churn_min", "S_max": "churn_max", "S_noise": "churn_noise"}


def check_sampler(case, name, sampler, model):
    """The inputs of the network call by call, and the images."""
    labels, calls = class_labels(case), []

    def denoiser(x, sigma):
        calls.append((x, sigma[0]))
        return model(x.float(), sigma.float(), labels).double()

    draws = iter(case.get(f"{name}/noise", torch.empty(0)).double())
    images = sampler(denoiser, case["latents"].double(), lambda: next(draws))
    assert sampler.nfe == len(calls) == case["meta"]["cases"][name].get("nfe", len(calls))
    if f"{name}/sigma_calls" in case:
        expect(torch.stack([sigma for _, sigma in calls]), case, f"{name}/sigma_calls", rtol=1e-5, atol=0)
    pairs = [(images, case[f"{name}/out"])]
    if f"{name}/x_calls" in case:
        pairs += zip([x for x, _ in calls], case[f"{name}/x_calls"], strict=True)
    for x, reference in pairs:
        assert_close(x, reference, rtol=0, atol=1e-5 * reference.abs().max().item())


@pytest.mark.parametrize(("path", "name"), sampler_cases("edm_sampler"))
def test_edm_sampler(path, name):
    case = load(path)
    model, (low, high) = official_model(case)
    kwargs = {"sigma_min": 0.002, "sigma_max": 80.0} | numbers(case["meta"]["cases"][name]["kwargs"])
    kwargs |= {"sigma_min": max(kwargs["sigma_min"], low), "sigma_max": min(kwargs["sigma_max"], high)}
    names = {"num_steps": "steps"} | CHURN
    check_sampler(case, name, Heun(**{names.get(key, key): value for key, value in kwargs.items()}), model)


DEFAULTS = {"num_steps": 18, "rho": 7, "solver": "heun", "discretization": "edm", "schedule": "linear"}
DEFAULTS |= {"scaling": "none", "epsilon_s": 1e-3, "C_1": 0.001, "C_2": 0.008, "M": 1000, "alpha": 1}


@pytest.mark.parametrize(("path", "name"), sampler_cases("ablation_sampler"))
def test_ablation_sampler(path, name):
    case = load(path)
    model, (low, high) = official_model(case)
    kwargs = DEFAULTS | numbers(case["meta"]["cases"][name]["kwargs"])
    steps, epsilon = kwargs["num_steps"], kwargs["epsilon_s"]
    usual = VPSchedule(epsilon=epsilon)
    ranges = {"vp": (usual.sigma(epsilon), usual.sigma(1)), "ve": (0.02, 100), "iddpm": (0.002, 81), "edm": (0.002, 80)}
    ends = [kwargs.get(key) for key in ("sigma_min", "sigma_max")]
    ends = [usual if end is None else end for end, usual in zip(ends, ranges[kwargs["discretization"]])]
    ends = {"sigma_min": max(ends[0], low), "sigma_max": min(ends[1], high)}
    sigmas = {
        "vp": partial(vp_levels, epsilon=epsilon),
        "ve": ve_levels,
        "iddpm": partial(iddpm_levels, c_1=kwargs["C_1"], c_2=kwargs["C_2"], M=kwargs["M"]),
        "edm": partial(edm_levels, rho=kwargs["rho"]),
    }[kwargs["discretization"]](steps, **ends)
    schedule = {"vp": partial(VPSchedule, **ends, epsilon=epsilon), "ve": VESchedule, "linear": Linear}
    alpha = 0 if kwargs["solver"] == "euler" else kwargs["alpha"]
    churn = {CHURN[key]: value for key, value in kwargs.items() if key in CHURN}
    schedule, scaled = schedule[kwargs["schedule"]](), kwargs["scaling"] == "vp"
    check_sampler(case, name, GeneralODESampler(sigmas, schedule, scaled, alpha, **churn), model)
