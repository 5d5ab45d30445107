"""Samplers against the official code, call by call, and against the closed form of a Gaussian."""

import json
from itertools import pairwise

import pytest
import torch
from parity.golden import F32, F64, TinyNet, cases, constants, load
from torch.testing import assert_close

from consistency_models.noise.preconditioning import EDM, Boundary, Preconditioned
from consistency_models.noise.schedules import karras_grid
from consistency_models.sampling import samplers, solvers

# The official grid ends a rounding error above sigma_min, so that its last noise has std 1e-10 in place of 0.
RUNS = [F64 | {"atol": 1e-9}, F32 | {"atol": 1e-3}]
CHURN = {"s_churn": "churn", "s_tmin": "churn_min", "s_tmax": "churn_max", "s_noise": "churn_noise"}
GRID = ("sigma_min", "sigma_max", "rho")


def _ode(name):
    def make(arguments):
        names = {"steps": "steps", "clip_denoised": "clip"} | CHURN | {name: name for name in GRID}
        return getattr(samplers, name)(**{names[key]: value for key, value in arguments.items() if key in names})

    return make


def _onestep(arguments):
    return samplers.Consistency(
        (arguments.get("sigma_max", 80.0),), arguments.get("sigma_min", 0.002), arguments["clip_denoised"]
    )


def _multistep(arguments):
    grid = {key: arguments[key] for key in GRID if key in arguments}
    return samplers.Consistency.from_indices(
        arguments["ts"], arguments["steps"], **grid, clip=arguments["clip_denoised"]
    )


MAKE = {
    "heun": _ode("Heun"),
    "euler": _ode("Euler"),
    "dpm": _ode("DPM2"),
    "ancestral": _ode("Ancestral"),
    "onestep": _onestep,
    "multistep": _multistep,
}


def _runs():
    """Progressive distillation's sampler belongs to another method."""
    for case in cases(r"(.+)_args", r"noise_init", r"noise_steps"):
        path, tag = case.values
        if json.loads(load(path)[f"{tag}_args"])["sampler"] in MAKE:
            yield case


class Recorded:
    """A denoiser that remembers its calls."""

    def __init__(self, denoiser):
        self.denoiser, self.x, self.sigma = denoiser, [], []

    def __call__(self, x, sigma):
        assert sigma.shape == (len(x),)
        self.x.append(x)
        self.sigma.append(sigma[0].item())
        return self.denoiser(x, sigma)


@pytest.mark.parametrize("run", RUNS, ids=["f64", "f32"])
@pytest.mark.parametrize(("path", "tag"), list(_runs()))
def test_sampler(path, tag, run):
    case, dtype = load(path), run["dtype"]
    arguments = json.loads(case[f"{tag}_args"])
    sampler = MAKE[arguments["sampler"]](arguments)
    consistency = arguments["sampler"] in ("onestep", "multistep")
    network = TinyNet(case, "net", dtype)
    denoiser = Recorded(Preconditioned(network, Boundary() if consistency else EDM()))
    # The official start has the standard deviation sigma_max, whatever the first level.
    noise = case["noise_init"].to(dtype) * (arguments.get("sigma_max", 80.0) / sampler.sigmas[0])
    draws = iter(case["noise_steps"].to(dtype))
    images = sampler(denoiser, noise, lambda: next(draws)).clamp(-1, 1)
    tolerance = {"rtol": run["rtol"], "atol": run["atol"]}
    assert_close(images, case[f"{tag}_out{run['suffix']}"], **tolerance)
    sigmas = case[f"{tag}_calls_sigma{run['suffix']}"]
    assert_close(torch.tensor(denoiser.sigma, dtype=sigmas.dtype), sigmas, rtol=max(run["rtol"], 1e-5), atol=0)
    assert sampler.nfe == len(sigmas)
    if dtype == torch.float64:
        for i, x in zip(case[f"{tag}_calls_idx"].tolist(), case[f"{tag}_calls_x__f64"]):
            assert_close(denoiser.x[i][0], x, **tolerance)


@pytest.mark.parametrize("run", RUNS, ids=["f64", "f32"])
@pytest.mark.parametrize("path", cases(r"sis_raw_out", r"noise_init"))
def test_nothing_is_clamped(path, run):
    case, dtype = load(path), run["dtype"]
    sampler = samplers.Consistency.from_indices(case["sis_raw_ts"].tolist(), int(case["sis_raw_steps"]))
    draws = iter(case["noise_steps"].to(dtype))
    denoiser = Preconditioned(TinyNet(case, "net", dtype), Boundary())
    images = sampler(denoiser, case["noise_init"].to(dtype), lambda: next(draws))
    assert_close(images, case[f"sis_raw_out{run['suffix']}"], rtol=run["rtol"], atol=run["atol"])


@pytest.mark.parametrize("path", cases(r"anc_from", r"anc_to"))
def test_ancestral_levels(path):
    case = load(path)
    steps = [
        samplers.ancestral_step(high, low) for high, low in zip(case["anc_from"].tolist(), case["anc_to"].tolist())
    ]
    down, up = torch.tensor(steps, dtype=torch.float64).T
    assert_close(down, case["anc_down__f64"], rtol=1e-7, atol=1e-12)  # official: by a difference of squares
    assert_close(up, case["anc_up__f64"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", [getattr(solvers, name)() for name in ("Euler", "Heun", "DPM2")])
@pytest.mark.parametrize("path", cases(r"consistency", r"mean", r"std", r"sigma"))
def test_solvers_reach_the_consistency_function_of_a_gaussian(path, solver):
    case, fixed = load(path), constants()
    mean, std = case["mean"], case["std"]
    above = case["sigma"] > fixed["sigma_min"]
    x, sigma, expected = (case[name][above] for name in ("x", "sigma", "consistency"))

    def denoiser(x, sigma):
        return (std**2 * x + sigma[:, None] ** 2 * mean) / (std**2 + sigma[:, None] ** 2)

    assert_close(denoiser(x, sigma), case["denoised"][above], rtol=1e-10, atol=1e-12)
    errors = []
    for steps in (50, 100):
        # Each row goes from its own level to sigma_min on a grid of its own.
        grid = torch.stack([karras_grid(steps + 1, fixed["sigma_min"], s, fixed["rho"]) for s in sigma.tolist()], 1)
        end = x
        for high, low in pairwise(grid.flip(0)):
            end = solver(denoiser, end, high, low)
        errors.append((end - expected).abs().max().item())
    assert errors[1] < 0.02 * x.abs().max()
    assert errors[0] / errors[1] > 0.85 * 2**solver.order
