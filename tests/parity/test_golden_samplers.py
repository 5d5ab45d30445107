"""Samplers against the official code, call by call, and against the closed form of a Gaussian."""

import json
import math
from itertools import pairwise

import pytest
import torch
from parity.golden import CONSTANTS, F32, F64, SUFFIX, TinyNet, cases, constants, expect, load
from torch.testing import assert_close

from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary
from consistency_models.noise.schedules import karras_grid
from consistency_models.sampling import samplers, solvers

# The official grid ends a rounding error above sigma_min, so that its last noise has std 1e-7·sigma_min in place of 0.
RUNS = {"__f64": F64 | {"atol": 1e-9}, None: F32 | {"atol": 1e-4}}
LAST_NOISE = 1e-6
CHURN = {"s_churn": "churn", "s_tmin": "churn_min", "s_tmax": "churn_max", "s_noise": "churn_noise"}
GRID = ("sigma_min", "sigma_max", "rho")
USUAL = {name: CONSTANTS[name] for name in GRID} | {"clip_denoised": True, "sampler": "heun"}
"""What the official function takes for arguments that a file leaves out."""


def _ode(name, **churn):
    """A sampler of our `samplers`; the official code hands churn on to those that know it."""

    def make(arguments):
        names = {"steps": "steps", "clip_denoised": "clip"} | churn | {name: name for name in GRID}
        given = {names[key]: value for key, value in arguments.items() if key in names and value is not None}
        return getattr(samplers, name)(**given)

    return make


def _onestep(arguments):
    return samplers.Consistency((arguments["sigma_max"],), arguments["sigma_min"], arguments["clip_denoised"])


def _multistep(arguments):
    grid = {key: arguments[key] for key in GRID}
    return samplers.Consistency.from_indices(
        arguments["ts"], arguments["steps"], **grid, clip=arguments["clip_denoised"]
    )


MAKE = {
    "heun": _ode("Heun", **CHURN),
    "euler": _ode("Euler"),
    "dpm": _ode("DPM2", **CHURN),
    "ancestral": _ode("Ancestral"),
    "onestep": _onestep,
    "multistep": _multistep,
}


def _runs():
    """Progressive distillation's sampler belongs to another method."""
    for case in cases(rf"(.+)_out{SUFFIX}", r".+_args", r"noise_init", without=[r"ts"]):
        path, tag, _ = case.values
        if f"{tag}_args" not in load(path):
            continue
        if json.loads(load(path)[f"{tag}_args"]).get("sampler", "heun") in MAKE:
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


@pytest.mark.parametrize(("path", "tag", "suffix"), list(_runs()))
def test_sampler(path, tag, suffix):
    case, run, fixed = load(path), RUNS[suffix], constants(path)
    dtype, arguments = run["dtype"], USUAL | json.loads(case[f"{tag}_args"])
    if arguments.get("s_tmax") == "inf":
        arguments["s_tmax"] = math.inf
    sampler = MAKE[arguments["sampler"]](arguments)
    consistency = arguments["sampler"] in ("onestep", "multistep")
    network = TinyNet(case, "net", dtype)
    boundary, edm = Boundary(fixed["sigma_data"], fixed["sigma_min"]), EDM(fixed["sigma_data"])
    denoiser = Recorded(Preconditioned(network, boundary if consistency else edm))
    # The official start has the standard deviation sigma_max, whatever the first level.
    noise = case["noise_init"].to(dtype) * (arguments["sigma_max"] / sampler.sigmas[0])
    draws = iter(case.get("noise_steps", torch.empty(0)).to(dtype))
    images = sampler(denoiser, noise, lambda: next(draws)).clamp(-1, 1)
    tolerance = {"rtol": run["rtol"], "atol": max(run["atol"], LAST_NOISE * arguments["sigma_min"])}
    expect(images, case, f"{tag}_out{run['suffix']}", **tolerance)
    assert sampler.nfe == len(denoiser.sigma)
    sigmas = case.get(f"{tag}_calls_sigma{run['suffix']}")
    if sigmas is not None:
        assert_close(torch.tensor(denoiser.sigma, dtype=sigmas.dtype), sigmas, rtol=max(run["rtol"], 1e-5), atol=0)
    if dtype == torch.float64 and f"{tag}_calls_x__f64" in case:
        for i, x in zip(case[f"{tag}_calls_idx"].tolist(), case[f"{tag}_calls_x__f64"]):
            assert_close(denoiser.x[i][0], x, **tolerance)


@pytest.mark.parametrize(("path", "suffix"), cases(rf"sis_raw_out{SUFFIX}", r"noise_init", r"sis_raw_ts"))
def test_nothing_is_clamped(path, suffix):
    case, run, fixed = load(path), RUNS[suffix], constants(path)
    dtype, grid = run["dtype"], {name: fixed[name] for name in GRID}
    sampler = samplers.Consistency.from_indices(case["sis_raw_ts"].tolist(), int(case["sis_raw_steps"]), **grid)
    draws = iter(case.get("noise_steps", torch.empty(0)).to(dtype))
    boundary = Boundary(fixed["sigma_data"], fixed["sigma_min"])
    denoiser = Preconditioned(TinyNet(case, "net", dtype), boundary)
    noise = case["noise_init"].to(dtype) * (fixed["sigma_max"] / sampler.sigmas[0])
    images = sampler(denoiser, noise, lambda: next(draws))
    tolerance = {"rtol": run["rtol"], "atol": max(run["atol"], LAST_NOISE * fixed["sigma_min"])}
    expect(images, case, f"sis_raw_out{run['suffix']}", **tolerance)


@pytest.mark.parametrize("path", cases(r"anc_from", r"anc_to", r"anc_down__f64", r"anc_up__f64"))
def test_ancestral_levels(path):
    case = load(path)
    steps = [
        samplers.ancestral_step(high, low) for high, low in zip(case["anc_from"].tolist(), case["anc_to"].tolist())
    ]
    down, up = torch.tensor(steps, dtype=torch.float64).T
    assert_close(down, case["anc_down__f64"], rtol=1e-7, atol=1e-12)  # official: by a difference of squares
    expect(up, case, "anc_up__f64", rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", [getattr(solvers, name)() for name in ("Euler", "Heun", "DPM2")])
@pytest.mark.parametrize("path", cases(r"consistency", r"mean", r"std", r"sigma"))
def test_solvers_reach_the_consistency_function_of_a_gaussian(path, solver):
    case, fixed = load(path), constants(path)
    mean, std = case["mean"], case["std"]
    above = case["sigma"] > fixed["sigma_min"]
    x, sigma, expected = (case[name][above] for name in ("x", "sigma", "consistency"))

    def denoiser(x, sigma):
        return (std**2 * x + sigma[:, None] ** 2 * mean) / (std**2 + sigma[:, None] ** 2)

    if "denoised" in case:
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
