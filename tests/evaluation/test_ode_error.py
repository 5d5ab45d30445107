"""ODE error: with Gaussian data, whose consistency function is a formula, errors are what was put in."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from consistency_models.app.ode_error import build_ode_error
from consistency_models.conditions import Prompt
from consistency_models.data import GaussianMixture
from consistency_models.devices import float64
from consistency_models.evaluation.ode_error import SIGMAS, HeunSolution, ODEError
from consistency_models.teachers import Guided

MEAN, STD = torch.tensor([0.3, -0.2, 0.1]).double(), torch.tensor([0.1, 0.5, 1.0]).double()
DATA = MEAN + STD * torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(x, sigma, to, labels=None):
    return MEAN + (x - MEAN) * ((STD**2 + to**2) / (STD**2 + sigma**2)).sqrt()


def denoised(x, sigma, labels=None):
    return MEAN + (x - MEAN) * STD**2 / (STD**2 + sigma[:, None] ** 2)


def consistency(x, sigma, labels=None):
    return exact(x, sigma[:, None], 0.002)


def test_levels():
    assert len(SIGMAS) == 10
    assert (SIGMAS[0], SIGMAS[-1]) == pytest.approx((0.02, 80))
    torch.testing.assert_close(torch.tensor(SIGMAS).log().diff(), torch.full((9,), math.log(4000) / 9))


def test_the_exact_function_has_no_error():
    assert max(ODEError(exact, DATA)(consistency).summary().values()) < 1e-14


def test_errors_are_in_units_of_root_d_and_sigma_data():
    errors = ODEError(exact, DATA, sigma_data=0.25)(lambda x, sigma, labels: consistency(x, sigma) + 0.1)
    expected = pytest.approx(0.1 / 0.25)
    assert errors.summary() == {
        "ode_error": expected,
        "ode_error_median": expected,
        "ode_error_noise": expected,
        "ode_error_noise_median": expected,
        "self_consistency": pytest.approx(0, abs=1e-14),
    }


def test_errors_are_told_level_by_level():
    errors = ODEError(exact, DATA)(lambda x, sigma, labels: consistency(x, sigma) + sigma.log()[:, None])
    log_sigma = torch.tensor(SIGMAS, dtype=torch.float64).log()
    torch.testing.assert_close(errors.sigmas.log(), log_sigma)
    torch.testing.assert_close(errors.rms, log_sigma.abs() / 0.5)
    torch.testing.assert_close(errors.median, log_sigma.abs() / 0.5)
    torch.testing.assert_close(errors.self_consistency, log_sigma.diff() / 0.5)
    assert errors.noise_rms == pytest.approx(math.log(80) / 0.5)


def test_the_root_mean_square_and_the_median_see_outliers_differently():
    def wrong_for_some(x, sigma, labels):
        return consistency(x, sigma) + labels

    errors = ODEError(exact, DATA, labels=torch.eye(40)[:, :1].double())(
        wrong_for_some
    )  # wrong by 1 for the first image
    torch.testing.assert_close(errors.rms, torch.full((10,), 2 / math.sqrt(40)).double())
    assert errors.median.max() < 1e-14


def test_inputs_are_fixed_and_truth_is_computed_once():
    levels = []

    def solution(x, sigma, to, labels):
        levels.append((sigma, to))
        return exact(x, sigma, to)

    measure = ODEError(solution, DATA)
    first, second = measure(denoised).summary(), measure(denoised).summary()
    assert first == second == ODEError(exact, DATA)(denoised).summary()
    assert first != ODEError(exact, DATA, seed=2)(denoised).summary()
    assert len(levels) == len(set(levels)) + 1 == 20  # 10 to sigma_min, 10 along a trajectory; its last is one of them


def test_solutions_that_have_a_name_are_kept(monkeypatch, tmp_path):
    calls = []

    def solution(x, sigma, to, labels):
        calls.append(sigma)
        return exact(x, sigma, to)

    def errors(cache_key="mixture", **others):
        calls.clear()
        measure = ODEError(solution, others.pop("images", DATA), cache_key=cache_key, **others)
        return measure(denoised).summary(), len(calls)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, computed = errors()
    assert computed == 20
    assert errors() == (first, 0)
    assert errors(None) == (first, 20)
    assert errors("another")[1] == errors(seed=2)[1] == errors(images=DATA + 1)[1] == errors(sigma_min=0.003)[1] == 20
    assert errors(sigmas=(1.0, 80.0))[1] == 4
    (damaged, *_) = tmp_path.glob("*/solutions-*")
    for path in tmp_path.glob("*/solutions-*"):
        path.write_bytes(damaged.read_bytes()[:-1])
    assert errors() == (first, 20)


def test_solutions_for_prompts_are_kept_for_each_prompt(monkeypatch, tmp_path):
    calls = []

    def solution(x, sigma, to, labels):
        calls.append(len(labels))
        return exact(x, sigma, to) + labels.text.mean()

    def solved(prompt):
        calls.clear()
        measure = ODEError(solution, DATA, prompt, sigmas=(1.0, 80.0), batch_size=16, cache_key="teacher")
        return torch.stack(measure.solutions["noised"]), len(calls)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prompt = Prompt(torch.ones(len(DATA), 2, 4), empty=torch.zeros(2, 4))
    first, computed = solved(prompt)
    assert computed == 4 * math.ceil(len(DATA) / 16)
    again, computed = solved(prompt)
    assert computed == 0
    assert torch.equal(again, first)
    assert solved(Prompt(2 * prompt.text, empty=prompt.empty))[1] > 0


def test_the_batch_does_not_matter():
    small, large = (ODEError(exact, DATA, batch_size=size)(denoised).summary() for size in (7, 64))
    assert small == pytest.approx(large, rel=1e-12)


def test_images_of_any_shape_and_labels_are_handed_on():
    def model(x, sigma, labels):
        assert x.shape == (4, 3, 1, 1)
        assert sigma.shape == (4,)
        return x.new_zeros(x.shape) + labels

    images, labels = DATA[:8, :, None, None].float(), torch.arange(8.0)[:, None, None, None]
    errors = ODEError(lambda x, sigma, to, labels: labels.expand_as(x), images, labels, batch_size=4)(model)
    assert max(errors.summary().values()) == 0


@pytest.mark.parametrize("sigmas", [(80.0,), (1.0, 0.5), (0.001, 80.0)])
def test_levels_without_order_are_refused(sigmas):
    with pytest.raises(ValueError, match="need sigma_min < sigmas"):
        ODEError(exact, DATA, sigmas=sigmas)


def test_heun_solution_is_of_second_order():
    x = 80 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coarse, fine = (
        (HeunSolution(denoised, steps)(x, 80.0, 0.002) - exact(x, 80.0, 0.002)).norm() for steps in (64, 128)
    )
    assert coarse / fine == pytest.approx(4, rel=0.1)


def test_heun_solution_takes_its_share_of_the_steps_and_the_dtype_of_the_network():
    calls = []

    def network(x, sigma, labels):
        assert x.dtype == sigma.dtype == torch.float32
        calls.append(sigma[0].item())
        return denoised(x, sigma).float()

    solution, x = HeunSolution(network, 100), DATA.float()
    assert solution(x, 80.0, 0.002).dtype == torch.float32
    whole = len(calls)
    solution(solution(x, 80.0, 1.0), 1.0, 0.002)
    assert whole == 200
    assert abs(len(calls) - 2 * whole) <= 2
    assert torch.equal(solution(x, 1.0, 1.0), x)


def test_heun_with_few_steps_on_the_ring_of_gaussians():
    """18 levels were measured before there was this code: root mean square at σ = 80 .0425, on 20,000 points."""
    ring = GaussianMixture.ring()
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measure = ODEError(lambda x, s, to, y: HeunSolution(ring.denoised, 300)(x, s, to), noise, sigmas=(40.0, 80.0))
    few = HeunSolution(ring.denoised, 17)
    assert measure(lambda x, sigma, labels: few(x, sigma[0].item(), 0.002)).noise_rms == pytest.approx(0.0425, rel=0.2)


def test_a_teacher_s_solution_is_solved_once_for_each_teacher(tmp_path, monkeypatch):
    """It is known by the teacher's digest and settings, not by its path; with guidance it is not kept."""
    calls = []

    class Teacher(torch.nn.Module):
        def forward(self, x, sigma, labels):
            calls.append(len(x))
            return x / 2

    def solve(digest="a", path="here", weights=None, ode_steps=3, guidance=None):
        calls.clear()
        model = Teacher()
        model.origin = {"digest": digest}
        config = {
            "data": {"channels": 1, "image_size": 4, "network_classes": 0, "clamp": True, "sigma_data": 0.5},
            "model": {},
            "teacher": {"path": path, "weights": weights},
            "evaluation": {"ode_points": 6, "ode_steps": ode_steps, "batch_size": 4},
        }
        images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
        source = SimpleNamespace(images=images, labels=None, prompts=None, has_closed_form=False)
        teacher = model if guidance is None else Guided(model, guidance, Teacher())
        solved = build_ode_error(config, source, teacher)("cpu").solutions
        return bool(solved and calls)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert solve()
    assert not solve()
    assert not solve(path="there")
    assert all([solve("b"), solve(ode_steps=4), solve(weights="model")])
    assert all([solve(guidance=2.0), solve(guidance=2.0)])


def test_float64_of_a_device_without_it_is_that_of_the_cpu():
    with FakeTensorMode():
        assert float64(torch.empty(2, device="mps")).device.type == "cpu"
        assert float64(torch.empty(2, device="cuda")).device.type == "cuda"
