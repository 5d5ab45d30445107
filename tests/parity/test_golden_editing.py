"""Zero-shot editing against the official code: measurements, one replacement, and whole runs."""

import pytest
import torch
from parity.golden import CONSTANTS, F32, TinyNet, cases, constants, expect, load

from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import Boundary
from consistency_models.noise.schedules import karras_grid
from consistency_models.sampling.editing import Colorization, Inpainting, SuperResolution, edit


def _patch(case):
    """The largest patch on which the official measurement is constant."""
    y = case["superres_images_out"]
    divisors = [p for p in range(y.shape[-1], 0, -1) if y.shape[-1] % p == 0 and y.shape[-2] % p == 0]
    return next(p for p in divisors if _blocks(y, p).std((3, 5), correction=0).max() < 1e-6)


def _blocks(y, p):
    return y.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))


def _grid(case):
    names = {"sigma_min": ("sigma_min", "t_min"), "sigma_max": ("sigma_max", "t_max"), "rho": ("rho",)}
    given = {name: float(case[key]) for name, keys in names.items() for key in keys if key in case}
    sigmas = karras_grid(int(case["steps"]), **given).flip(0)[case["ts"]].tolist()
    return sigmas, given.get("sigma_min", CONSTANTS["sigma_min"])


OPERATORS = {
    "color": lambda case: Colorization(),
    "superres": lambda case: SuperResolution(_patch(case)),
    "inpaint": lambda case: Inpainting(case["inpaint_mask"], fill=-1.0),
}
NAMES = "|".join(OPERATORS)


@pytest.mark.parametrize(("path", "name"), cases(rf"({NAMES})_images_out", r"ts"))
def test_measurement(path, name):
    case = load(path)
    y = OPERATORS[name](case).measure(case[f"{name}_images"])
    expect(y, case, f"{name}_images_out", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("path", "name"), cases(rf"({NAMES})_replace_out", r"ts"))
def test_replacement(path, name):
    case = load(path)
    operator, x = OPERATORS[name](case), case[f"{name}_replace_in"].clamp(-1, 1)
    got = operator.replace(operator.measure(case[f"{name}_images"]), x)
    expect(got, case, f"{name}_replace_out", rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("path", "name"), cases(rf"({NAMES})_x_out", r"ts"))
def test_whole_run(path, name):
    case = load(path)
    (*sigmas, end), sigma_min = _grid(case)
    boundary = Boundary(constants(path)["sigma_data"], sigma_min)
    operator, denoiser = OPERATORS[name](case), Preconditioned(TinyNet(case, "net", torch.float32), boundary)
    noise, y = iter(case[f"{name}_noise"]), operator.measure(case[f"{name}_images"])
    x = edit(denoiser, y, operator.replace, sigmas, lambda: next(noise), sigma_min, end, x=case[f"{name}_x_init"])
    expect(x, case, f"{name}_x_out", rtol=F32["rtol"], atol=1e-4)
