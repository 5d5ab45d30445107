"""sCT and sCD: what their tangent is the limit of, and what they become in special cases."""

import pytest
import torch
from jobs import TINY, config_of, run
from methods.steps import method, step_of
from torch import nn
from torch.testing import assert_close

from consistency_models.app.build import build_method
from consistency_models.errors import Exit
from consistency_models.losses.learned import LogWeight
from consistency_models.losses.weightings import EDM as EDMWeight
from consistency_models.methods.ect import EasyConsistencyTuning
from consistency_models.methods.scd import ContinuousConsistencyDistillation
from consistency_models.methods.sct import ContinuousConsistencyTraining
from consistency_models.networks.layout import compile_in_place
from consistency_models.networks.mlp import MLP
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary, TrigFlow
from consistency_models.noise.schedules import Levels, per_image
from consistency_models.random import BatchRandom
from consistency_models.storage.checkpoints import read
from consistency_models.teachers import weights_of_teacher

SIGMA_DATA = 0.7
SIGMA = torch.tensor([0.03, 0.5, 2.0, 30.0], dtype=torch.float64)


def model_of(scalings=TrigFlow, dropout=0.0):
    """A random network with no zeros."""
    torch.manual_seed(0)
    network = MLP(2, 3, dropout=dropout, width=16, depth=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Preconditioned(network, scalings(SIGMA_DATA)).double()


def step_at(k=0, sigma=SIGMA):
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, len(sigma), 3, 2, 2, generator=generator, dtype=torch.float64)
    step = step_of(x, noise, Levels(sigma, torch.zeros_like(sigma)))
    step.rows = BatchRandom(0, k, len(sigma), slice(0, len(sigma)))
    return step


def gradients(of, step):
    """Of the mean loss of a step."""
    online = of.online(step)
    step.online = online.detach()
    with torch.no_grad():
        target = of.target(step)
    return torch.autograd.grad(of.loss(step, online, target).mean(), list(of.model.parameters()))


def sct(model, **arguments):
    arguments = {"tangent_norm": None, "warmup_steps": 0, "weighting": EDMWeight(SIGMA_DATA)} | arguments
    return method(ContinuousConsistencyTraining, model, **arguments)


@pytest.mark.parametrize("scalings", [TrigFlow, EDM])
def test_the_tangent_is_the_derivative_of_the_denoised_images(scalings):
    """g = √(σ² + σ_d²)·dD/dσ, by central differences; and the gap of a discrete pair that closes leads there."""
    model, step = model_of(scalings), step_at()
    g = sct(model).tangent(step) / per_image((SIGMA**2 + SIGMA_DATA**2).sqrt(), step.x)
    h = 1e-5 * SIGMA
    ahead, behind = (model(step.at(sigma), sigma) for sigma in (SIGMA + h, SIGMA - h))
    assert_close((ahead - behind) / per_image(2 * h, step.x), g, rtol=1e-6, atol=1e-7)
    errors = []
    for gap in (1e-2, 1e-3, 1e-4):
        s = SIGMA * (1 - gap)
        slope = (model(step.x_t, SIGMA) - model(step.at(s), s)) / per_image(SIGMA - s, step.x)
        errors.append((slope - g).abs().amax((1, 2, 3)))
    assert (errors[1] < 0.2 * errors[0]).all()
    assert (errors[2] < 0.2 * errors[1]).all()


def test_without_a_weight_and_a_norm_it_is_ect_whose_gap_closes():
    """∇ of λ·(D_t - D_s)² for the weight (σ² + σ_d²)/(σ_d·σ·(t - s))."""
    model, step = model_of(), step_at()
    gap = 1e-6 * SIGMA

    def weighting(levels):
        t = levels.high
        return (t**2 + SIGMA_DATA**2) / (SIGMA_DATA * t * (t - levels.low))

    expected = gradients(sct(model), step)
    step.levels = Levels(SIGMA, SIGMA - gap)
    found = gradients(method(EasyConsistencyTuning, model, weighting=weighting), step)
    for ours, theirs in zip(expected, found):
        assert_close(theirs, ours, rtol=1e-4, atol=1e-5 * ours.abs().max().item())


def test_at_the_start_of_the_warm_up_it_is_flow_matching():
    """∇ of cos²a/σ_d·mean (σ_d·F - dx_a/da)²."""
    model, step = model_of(), step_at(k=0)
    found = gradients(sct(model, warmup_steps=10), step)
    angle = per_image((SIGMA / SIGMA_DATA).atan(), step.x)
    velocity = angle.cos() * SIGMA_DATA * step.noise - angle.sin() * step.x
    loss = angle.cos() ** 2 / SIGMA_DATA * (SIGMA_DATA * model.raw(step.x_t, SIGMA) - velocity) ** 2
    assert_close(found, torch.autograd.grad(loss.mean(), list(model.parameters())), rtol=1e-9, atol=1e-11)


def test_the_warm_up_scales_the_second_part_alone():
    model = model_of()
    start, half, full, after = (sct(model, warmup_steps=10).tangent(step_at(k)) for k in (0, 5, 10, 99))
    assert_close(half, (start + full) / 2)
    assert torch.equal(full, after)


def test_scd_with_the_exact_teacher_is_sct_on_average():
    """Data ±1: at x_t the noise has two values, of whose tangents the teacher's is the mean."""
    model, sigma = model_of(), torch.tensor([1.3], dtype=torch.float64)
    x_t = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points = torch.stack([torch.ones_like(x_t), -torch.ones_like(x_t)])
    posterior = torch.softmax(-((x_t - points) ** 2).flatten(1).sum(1) / (2 * sigma**2), 0)
    tangents = []
    for point in points:
        step = step_at(sigma=sigma)
        step.x, step.noise, step.x_t = point, (x_t - point) / sigma, x_t
        tangents.append(sct(model).tangent(step))
    mean = (posterior.view(2, 1, 1, 1, 1) * points).sum(0)
    scd = method(ContinuousConsistencyDistillation, model, lambda *_: mean, tangent_norm=None, warmup_steps=0)
    assert_close(scd.tangent(step), posterior[0] * tangents[0] + posterior[1] * tangents[1])
    assert scd.teacher_calls == 1


def test_the_loss_is_that_of_the_raw_outputs():
    """e^w·mean (F - F⁻ - ĝ)² - w, whose value is e^w·mean ĝ² - w."""
    model, step, weight = model_of(), step_at(), LogWeight(SIGMA_DATA).double()
    nn.init.normal_(weight.linear.weight, std=0.1)
    learned = sct(model, log_weight=weight, tangent_norm=0.1)
    online = learned.online(step)
    step.online = online.detach()
    with torch.no_grad():
        target = learned.target(step)
        g, w = learned.normalized(learned.tangent(step)), weight(SIGMA)
    assert w.shape == SIGMA.shape
    assert w.abs().min() > 0
    assert_close(learned.loss(step, online, target).detach(), w.exp() * g.square().mean((1, 2, 3)) - w)
    assert_close(g.flatten(1).norm(dim=1) < 1, torch.ones(4, dtype=torch.bool))


def test_norms_of_the_tangent():
    g = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = g.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    model = model_of()
    assert_close(sct(model, tangent_norm=0.3).normalized(g), g / (norm + 0.3))
    assert_close(sct(model, tangent_norm=0.3, tangent_rms=True).normalized(g), g / (norm / 32**0.5 + 0.3))
    assert_close(sct(model, tangent_clip=0.5).normalized(g), g.clamp(-0.5, 0.5))
    assert sct(model).normalized(g) is g


def test_a_learned_weight_makes_all_levels_equal():
    """At its optimum e^w = 1/E[L | σ]."""
    torch.manual_seed(0)
    weight = LogWeight(0.5)
    sigma = torch.logspace(-2, 0.5, 64)
    assert (weight(sigma) == 0).all()
    loss, optimizer = 1 + sigma, torch.optim.Adam(weight.parameters(), lr=0.05)
    for _ in range(500):
        w = weight(sigma)
        optimizer.zero_grad()
        (w.exp() * loss - w).mean().backward()
        optimizer.step()
    assert_close(weight(sigma).exp() * loss, torch.ones(64), rtol=0.1, atol=0)


def test_the_derivative_has_the_dropout_masks_of_the_online_pass():
    model, step = model_of(dropout=0.5).train(), step_at()
    of = sct(model)
    step.rows.seed_dropout()
    online = model.raw(step.x_t, SIGMA)
    value, _ = of.derivative(step, model.raw, (step.x_t, SIGMA), (step.noise, torch.ones_like(SIGMA)))
    assert torch.equal(value, online.detach())
    assert not torch.equal(model.raw(step.x_t, SIGMA), online)


def test_scalings_and_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"preconditioning must be TrigFlow or EDM, .*; got Boundary"):
        sct(model_of(Boundary))
    with pytest.raises(ValueError, match=r"tangent_rms=True .* needs a number tangent_norm"):
        sct(model_of(), tangent_rms=True)


def test_weights_of_other_scalings_are_no_silent_start(recwarn):
    for scalings, fits in ((EDM, True), (Boundary, True), (TrigFlow, False)):
        student, teacher = model_of(scalings), model_of(EDM)
        weights_of_teacher(student, teacher)
        told = [str(warning.message) for warning in recwarn if "preconditioning" in str(warning.message)]
        assert bool(told) != fits
    assert "trained with the preconditioning EDM start a model with TrigFlow" in told[0]


DIGITS = (*TINY, "model=sct", "data=digits", "data.batch_size=8", "network.model_channels=8", "trainer.max_steps=2")


def test_mixed_precision_trains_and_changes_the_tangent_by_rounding_only(tmp_path):
    """Derivatives are taken in float32; autocast is for the other passes."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        more = (f"trainer.precision={precision}", "network.attn_resolutions=[8]", "optimizer.lr=1e-6")
        assert run(tmp_path / precision, *DIGITS, *more) == Exit.DONE
        rows = (tmp_path / precision / "metrics.csv").read_text().splitlines()
        losses.append([float(row.split(",")[rows[0].split(",").index("train/loss")]) for row in rows[1:]])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_networks_give_the_same_step(backend, tmp_path):
    config = config_of(tmp_path, *DIGITS, "network.dropout=0.5")
    torch.manual_seed(0)
    built = build_method(config)
    for parameter in built.model.parameters():  # a fresh network is zero behind its dropout
        nn.init.normal_(parameter, std=0.1)
    built.log_weight, step = None, step_at(sigma=SIGMA.float())
    step.x, step.noise = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    step.labels, step.x_t = torch.eye(10)[:4], step.at(SIGMA.float())
    found = []
    for compiled in (False, True):
        if compiled:
            network = built.model.network
            network.compile(backend=backend) if backend == "eager" else compile_in_place(network)
        step.rows.seed_dropout()
        found.append(gradients(built, step))
    for eager, other in zip(*found):
        assert_close(other, eager, rtol=1e-3, atol=1e-4 * eager.abs().max().item())


def test_the_learned_weight_is_trained_and_saved(tmp_path):
    assert run(tmp_path, *DIGITS) == Exit.DONE
    saved = read(tmp_path / "checkpoints/last.ckpt")
    assert set(saved["method"]) == {"log_weight.linear.weight", "log_weight.linear.bias"}
    assert saved["method"]["log_weight.linear.bias"].abs() > 0
