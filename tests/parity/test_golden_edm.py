"""What EDM restates of other work: preconditionings of VP, VE and iDDPM, their losses, and the samplers."""

from functools import partial

import pytest
import torch
from parity.golden import cases, load
from parity.test_golden_scalings import EDMInner
from torch.testing import assert_close

from consistency_models.losses import weightings
from consistency_models.networks import official
from consistency_models.noise.preconditioning import EDM, IDDPM, VE, VP, Preconditioned
from consistency_models.noise.schedules import Levels
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

MAKE = {"VP": VP, "VE": VE, "iDDPM": IDDPM}


@pytest.mark.parametrize(("path", "name", "what"), cases(r"(VP|VE|iDDPM)Precond/(D|D_nolabel)"))
def test_denoised(path, name, what):
    case = load(path)
    model = Preconditioned(EDMInner(), MAKE[name]())
    got = model(case["x"], case["sigma"], case["class_labels"] if what == "D" else None)
    expected = case[f"{name}Precond/{what}"]
    assert_close(got, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(("path", "name"), cases(r"(VP|VE|iDDPM)Precond/sigma_min_max"))
def test_range_of_levels(path, name):
    scalings = MAKE[name]()
    got = torch.tensor([scalings.sigma_min, scalings.sigma_max], dtype=torch.float64)
    # officially float32, in which exp(1e-6) - 1 is 9.5e-7 (VP) and the last level of the table has five digits (iDDPM)
    assert_close(got, load(path)[f"{name}Precond/sigma_min_max"], rtol={"VP": 0.03, "VE": 0}.get(name, 1e-5), atol=0)


@pytest.mark.parametrize("path", cases("VPPrecond/sigma_of_t"))
def test_vp_levels_and_times(path):
    case = load(path)
    assert_close(VP().sigma(case["VPPrecond/t"]), case["VPPrecond/sigma_of_t"], rtol=1e-6, atol=0)
    assert_close(VP().time(case["sigma"].double()), case["VPPrecond/sigma_inv"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", cases("iDDPMPrecond/u"))
def test_iddpm_levels(path):
    case, scalings = load(path), IDDPM()
    assert_close(scalings.levels, case["iDDPMPrecond/u"], rtol=1e-5, atol=0)
    assert torch.equal(scalings.index(case["sigma"]), case["iDDPMPrecond/index"])
    rounded = scalings.levels[scalings.index(case["sigma"])].double()
    assert_close(rounded, case["iDDPMPrecond/round_sigma"], rtol=1e-5, atol=0)


LEVELS = {
    "VP": lambda u: VP().sigma(1 + u * (1e-5 - 1)),
    "VE": lambda u: VE().sigma_min * (VE().sigma_max / VE().sigma_min) ** u,
}


@pytest.mark.parametrize(("path", "name"), cases(r"(VP|VE)Loss/loss"))
def test_losses(path, name):
    case = load(path)
    sigma = LEVELS[name](case[f"{name}Loss/rnd"].flatten())
    y = case["images"]
    noisy = y + sigma.view(-1, 1, 1, 1) * case[f"{name}Loss/unit_noise"]
    denoised = Preconditioned(EDMInner(), MAKE[name]())(noisy, sigma, case["labels"])
    weight = weightings.SNR()(Levels(high=sigma, low=sigma)).view(-1, 1, 1, 1)
    expected = case[f"{name}Loss/loss"]
    assert_close(weight * (denoised - y).square(), expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def sampler_cases(function):
    """(path, case) for each case of the official function."""
    return [
        pytest.param(*found.values, id=found.id)
        for found in cases(r"(\w+)/x_calls")
        if load(found.values[0])["meta"]["cases"][found.values[1]]["fn"] == function
    ]


def check_sampler(case, name, sampler):
    """The official network, its inputs call by call, and the images."""
    kwargs = dict(case["meta"]["kwargs"])
    channels = kwargs.pop("img_channels")
    network = getattr(official, kwargs.pop("model_type"))(in_channels=channels, out_channels=channels, **kwargs)
    network.load_state_dict({k.removeprefix("sd/model."): v for k, v in case.items() if k.startswith("sd/")})
    model, calls = Preconditioned(network.eval(), EDM()), []

    def denoiser(x, sigma):
        calls.append((x, sigma[0]))
        return model(x.float(), sigma.float(), case["class_labels"]).double()

    draws = iter(case.get(f"{name}/noise", torch.empty(0)).double())
    images = sampler(denoiser, case["latents"].double(), lambda: next(draws))
    assert sampler.nfe == len(calls) == case["meta"]["cases"][name]["nfe"]
    assert_close(torch.stack([sigma for _, sigma in calls]), case[f"{name}/sigma_calls"], rtol=1e-5, atol=0)
    got, expected = [*(x for x, _ in calls), images], [*case[f"{name}/x_calls"], case[f"{name}/out"]]
    for x, reference in zip(got, expected):
        assert_close(x, reference, rtol=0, atol=1e-5 * reference.abs().max().item())


@pytest.mark.parametrize(("path", "name"), sampler_cases("edm_sampler"))
def test_edm_sampler(path, name):
    case = load(path)
    names = {
        "num_steps": "steps",
        "S_churn": "churn",
        "S_min": "churn_min",
        "S_max": "churn_max",
        "S_noise": "churn_noise",
    }
    kwargs = case["meta"]["cases"][name]["kwargs"]
    check_sampler(case, name, Heun(**{names.get(key, key): float(v) if v == "inf" else v for key, v in kwargs.items()}))


LEVEL_CHOICES = {"vp": vp_levels, "ve": ve_levels, "iddpm": iddpm_levels, "edm": edm_levels}


@pytest.mark.parametrize(("path", "name"), sampler_cases("ablation_sampler"))
def test_ablation_sampler(path, name):
    case = load(path)
    kwargs = {"solver": "heun", "discretization": "edm", "schedule": "linear", "scaling": "none", "alpha": 1}
    kwargs |= case["meta"]["cases"][name]["kwargs"]
    extremes = {key: kwargs[key] for key in ("sigma_min", "sigma_max") if key in kwargs}
    sigmas = LEVEL_CHOICES[kwargs["discretization"]](kwargs["num_steps"], **extremes)
    schedule = {"vp": partial(VPSchedule, **extremes), "ve": VESchedule, "linear": Linear}[kwargs["schedule"]]()
    alpha = 0 if kwargs["solver"] == "euler" else kwargs["alpha"]
    check_sampler(case, name, GeneralODESampler(sigmas, schedule, kwargs["scaling"] == "vp", alpha))
