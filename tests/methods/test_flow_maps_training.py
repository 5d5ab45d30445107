"""Trainings of flow maps: bf16, compiled networks, micro-batches, two processes, a second time that starts at zero."""

import pytest
import torch
from jobs import GRADIENT_STEP, TINY, TWO_PROCESSES, assert_same_weights, config_of, run, run_two, weights_of

import consistency_models
from consistency_models.app.build import build_method
from consistency_models.errors import Exit
from consistency_models.methods import Step
from consistency_models.noise.schedules import Levels
from consistency_models.random import BatchRandom

IMAGES = (*TINY, "data=digits", "network.model_channels=8", "network.attn_resolutions=[4]", "data.batch_size=8")
GUIDED = ("model=meanflow", "model.label_dropout=0.3", "model.omega=0.5", "model.kappa=0.5")
DERIVATIVES = {
    "meanflow": GUIDED,
    "alphaflow": ("model=alphaflow", "model.stop=0.1"),  # from the second step on by the derivative
    "imf": ("model=imf", "model.guidance_input=1", "model.label_dropout=0.3", "network.augment_dim=3"),
    "facm": ("model=facm", "model.two_times=false", "sampler=consistency_from_zero", "model.difference=1e-3"),
    "ayf": ("model=ayf", "teacher=exact", "data=mixture", "model.warmup_steps=1", "model.tangent_norm=0.1"),
    "transformer": ("model=meanflow", "network=dit", "network.depth=2", "network.heads=2"),
}
SHAPES = {name: (*TINY, "network.width=16", "data.batch_size=8") for name in ("ayf", "transformer")}


def arguments(model):
    shape = SHAPES.get(model, IMAGES)
    return (*shape, *DERIVATIVES[model], "trainer.max_steps=3")


@pytest.mark.parametrize("model", DERIVATIVES)
def test_bf16_autocast_on_a_cpu(model, tmp_path):
    exact, mixed = tmp_path / "exact", tmp_path / "mixed"
    assert run(exact, *arguments(model)) == Exit.DONE
    assert run(mixed, *arguments(model), "trainer.precision=bf16-mixed") == Exit.DONE
    exact, mixed = weights_of(exact), weights_of(mixed)
    assert any(not torch.equal(exact[name], mixed[name]) for name in exact)
    for name, value in exact.items():
        torch.testing.assert_close(mixed[name], value, rtol=0.1, atol=0.02, msg=name)


def built(folder, *more):
    """A method with random weights, and a step of it."""
    torch.manual_seed(0)
    method = build_method(config_of(folder, *IMAGES, *GUIDED, *more))
    for parameter in method.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, noise = torch.randn(2, 8, 1, 8, 8)
    high = torch.linspace(0.1, 3, 8)
    levels, rows = Levels(high, high / 2, high / 2), BatchRandom(0, 3, 8, slice(0, 8))
    step = Step(x, noise, x, levels, torch.eye(10)[:8], None, 0.0, rows)
    step.x_t = step.at(high)
    return method, step


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_has_the_same_derivative(backend, tmp_path):
    """With the dropout masks of the online pass."""
    method, step = built(tmp_path, "network.dropout=0.3")
    method.train()
    v = step.noise - step.x
    expected = method.derivative_along(step, v)
    method.model.network.compile(backend=backend)
    found = method.derivative_along(step, v)
    step.rows.seed_dropout()
    online = method.online(step)
    for one, other in ((found[0], expected[0]), (found[1], expected[1]), (online.detach(), expected[0])):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


STEP = (*IMAGES, *GUIDED, *GRADIENT_STEP, "optimizer.lr=0.01", "~optimizer.fused")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert run(folder, *STEP) == Exit.DONE
    return weights_of(folder)


def test_micro_batches_take_the_step_of_the_batch(one_process, tmp_path):
    assert run(tmp_path, *STEP, "trainer.accumulate_grad_batches=2") == Exit.DONE
    assert_same_weights(tmp_path, one_process, rtol=1e-5)


OTHERS = ("alphaflow", "imf", "facm", "shortcut", "imm", "ayf")


@pytest.mark.parametrize("model", OTHERS)
def test_micro_batches_of_the_others(model, tmp_path):
    """Shares and groups are by position in the global batch."""
    teacher = ("teacher=exact",) if model == "ayf" else ()
    step = (*TINY, "data=mixture", "network.width=16", "data.batch_size=32", f"model={model}", *teacher, *GRADIENT_STEP)
    step = (*step, "optimizer.lr=0.001", "~optimizer.fused", "model.target_ema=null")
    step = [each for each in step if model != "imm" or each != "~optimizer.fused"]  # RAdam has no such option
    assert run(tmp_path / "whole", *step) == Exit.DONE
    assert run(tmp_path / "parts", *step, "trainer.accumulate_grad_batches=4") == Exit.DONE
    assert_same_weights(tmp_path / "parts", weights_of(tmp_path / "whole"), rtol=1e-5)


def test_two_processes_take_the_step_of_one(one_process, tmp_path):
    run_two(tmp_path / "two", *STEP, *TWO_PROCESSES)
    assert_same_weights(tmp_path / "two", one_process, rtol=1e-5)


def test_a_student_of_two_times_starts_as_its_teacher_of_one(tmp_path):
    """init=teacher: the layer of the second time is zero and has no weights in the teacher."""
    teacher = (*TINY, "data=mixture", "network.width=8", "model=teacher", "preconditioning=flow", "weighting=uniform")
    assert run(tmp_path / "teacher", *teacher, "trainer.max_steps=2") == Exit.DONE
    student = (*TINY, "data=mixture", "network.width=8", "model=ayf", "init=teacher", "teacher=run")
    method = build_method(config_of(tmp_path, *student, f"teacher.path={tmp_path / 'teacher'}"))
    x, sigma = torch.randn(4, 2, 1, 1), torch.linspace(0.1, 5, 4)
    expected = consistency_models.load(tmp_path / "teacher").model(x, sigma)
    for end in (sigma, sigma / 2):
        torch.testing.assert_close(method.model(x, sigma, end=end), expected)


def test_autoguidance_by_an_earlier_run(tmp_path):
    common = (*TINY, "data=mixture", "network.width=8", "trainer.max_steps=2")
    for name, seed in (("strong", 0), ("weak", 1)):
        assert run(tmp_path / name, *common, "model=teacher", f"seed={seed}") == Exit.DONE
    guided = ("model=ayf", "teacher=run", f"teacher.path={tmp_path / 'strong'}", f"teacher.weak={tmp_path / 'weak'}")
    assert run(tmp_path / "student", *common, *guided, "teacher.guidance=3") == Exit.DONE
    method = build_method(config_of(tmp_path, *common, *guided, "teacher.guidance=3"))
    x, sigma = torch.randn(4, 2, 1, 1), torch.linspace(0.1, 5, 4)
    strong, weak = (consistency_models.load(tmp_path / name).model(x, sigma) for name in ("strong", "weak"))
    torch.testing.assert_close(method.teacher(x, sigma), weak + 3 * (strong - weak))
    assert method.teacher_calls == 8
