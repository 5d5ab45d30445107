"""sCD with the scale of the guidance as an input: the draw, the teacher, the student, the start and the samples."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from methods.steps import method
from methods.test_sct import SIGMA, SIGMA_DATA, gradients, step_at
from networks.files import config
from torch import nn
from torch.testing import assert_close

from consistency_models.app.ode_error import build_ode_error
from consistency_models.data import ImageSet
from consistency_models.losses.weightings import EDM as EDMWeight
from consistency_models.methods.scd import ContinuousConsistencyDistillation
from consistency_models.networks.mlp import MLP
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, TrigFlow
from consistency_models.sampling.samplers import Consistency
from consistency_models.teachers import Guided, weights_of_teacher


def random_model(seed, scalings=TrigFlow, **network):
    torch.manual_seed(seed)
    network = MLP(2, 3, width=16, depth=2, num_classes=3, **network)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = Preconditioned(network, scalings(SIGMA_DATA)).double()
    model.origin = {"path": "here", "digest": ""}
    return model


def scd(model, teacher, guidance_input):
    arguments = {"warmup_steps": 0, "weighting": EDMWeight(SIGMA_DATA), "guidance_input": guidance_input}
    return method(ContinuousConsistencyDistillation, model, teacher, **arguments)


def step_with_classes():
    step = step_at()
    step.labels = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    return step


def test_a_scale_that_is_always_the_same_is_constant_guidance():
    student, teacher = random_model(0, augment_dim=1), random_model(1, EDM)
    found, expected = step_with_classes(), step_with_classes()
    drawn = scd(student, Guided(teacher, None), (1.5, 1.5))
    found.augment = drawn.inputs(found)
    expected.augment = torch.full((4, 1), 0.5, dtype=torch.float64)
    assert_close(gradients(drawn, found), gradients(scd(student, Guided(teacher, 1.5), None), expected))
    assert any(grad.any() for grad in gradients(drawn, found))


def test_the_teacher_and_the_student_have_the_scale_of_their_row():
    student, teacher = random_model(0, augment_dim=1), random_model(1, EDM)
    drawn, step = scd(student, Guided(teacher, None), (1.0, 3.0)), step_with_classes()
    step.augment = drawn.inputs(step)
    scales = 1 + step.augment[:, 0]
    assert len(set(scales.tolist())) == 4
    slopes = drawn.slope(step)
    for row, scale in enumerate(scales.tolist()):
        fixed = scd(student, Guided(teacher, scale), None).slope(step)
        assert_close(slopes[row], fixed[row])
        assert not torch.isclose(slopes[row - 1], fixed[row - 1]).any()


def test_the_scale_is_uniform_behind_other_labels_and_the_same_in_any_division_of_the_batch():
    drawn = scd(random_model(0, augment_dim=2), Guided(random_model(1), None), (1.0, 2.0))
    step = step_at(sigma=torch.ones(400, dtype=torch.float64))
    excess = drawn.inputs(step)
    assert excess.shape == (400, 1)
    assert_close(excess.sort(0).values[:, 0], torch.linspace(0, 1, 400, dtype=torch.float64), atol=0.1, rtol=0)
    step.augment = torch.full((400, 1), 7.0, dtype=torch.float64)
    assert_close(drawn.inputs(step), torch.cat([step.augment, excess], 1))
    part = step_at(sigma=torch.ones(30, dtype=torch.float64))
    part.rows = replace(step.rows, local_slice=slice(20, 50))
    assert torch.equal(drawn.inputs(part), excess[20:50])


def test_a_teacher_without_a_scale_of_each_row_is_refused():
    student, teacher = random_model(0, augment_dim=1), random_model(1)
    for wrong in (teacher, Guided(teacher, 1.5)):
        with pytest.raises(ValueError, match=r"guidance_input=\[1.0, 2.0\] .* set teacher\.guidance=null"):
            scd(student, wrong, (1.0, 2.0))
    with pytest.raises(ValueError, match=r"only for Guided\(model, None\)"):
        Guided(teacher, 1.5)(torch.ones(4, 3, 2, 2).double(), SIGMA, None, guidance=SIGMA)


def test_a_network_without_such_an_input_is_refused():
    drawn, step = scd(random_model(0), Guided(random_model(1), None), (1.0, 2.0)), step_with_classes()
    step.augment = drawn.inputs(step)
    with pytest.raises(ValueError, match="takes 0 values"):
        drawn.online(step)


@pytest.mark.parametrize("name", ["small", "dit", "edm2"])
def test_the_student_starts_as_the_teacher_at_every_scale(name):
    node = config(name, image_size=8, channels=1).network
    channels = {"model_channels": 16, "num_blocks": 1}
    sizes = {"small": channels, "edm2": channels | {"head_channels": 16}, "dit": {"depth": 1, "width": 32, "heads": 2}}
    teacher, student = (Preconditioned(instantiate(node, **sizes[name], augment_dim=dim), EDM(0.5)) for dim in (0, 1))
    for name, parameter in (*teacher.named_parameters(), *student.named_parameters()):
        if "gain_augment" not in name:  # 0 at first, as the layers of the other networks become
            nn.init.normal_(parameter, std=0.1)
    weights_of_teacher(student, teacher)
    x, sigma, labels = torch.randn(3, 1, 8, 8), torch.ones(3), torch.eye(4)[:3]
    for model in (teacher, student):
        model.eval()
    assert_close(student(x, sigma, labels, torch.rand(3, 1)), teacher(x, sigma, labels))


def test_the_sampler_takes_the_scale():
    model, noise = random_model(0, augment_dim=1), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    level, given = torch.full((4,), 80.0, dtype=torch.float64), torch.full((4, 1), 0.5, dtype=torch.float64)
    expected = model(80 * noise, level, None, given)
    one = Consistency.for_steps(1, inputs=[0.5])
    assert torch.equal(one(model, noise, None), expected)
    assert torch.equal(one.descend(model, 80 * noise, 80.0), expected)
    assert torch.equal(Consistency.for_steps(1, inputs=[0.5], clip=True)(model, noise, None), expected.clamp(-1, 1))
    plain = Consistency.for_steps(1)(model, noise, None)
    assert torch.equal(plain, model(80 * noise, level, None, 0 * given))
    assert not torch.isclose(plain, expected).any()


@pytest.mark.parametrize(("inputs", "scale"), [(None, 1.0), ([0.5], 1.5)])
def test_the_ode_of_the_samples_is_the_reference(inputs, scale):
    """The distance to the teacher's ODE is measured with the guidance of the samples."""
    teacher = random_model(1, EDM).float()
    images = torch.randint(256, (6, 3, 2, 2), dtype=torch.uint8)
    source = ImageSet("few", images, torch.arange(6) % 3, num_classes=3)
    data = {"channels": 3, "image_size": 2, "network_classes": 3, "clamp": False, "sigma_data": SIGMA_DATA}
    settings = {
        "data": data,
        "evaluation": {"ode_points": 6, "ode_steps": 3, "batch_size": 4},
        "model": {"guidance_input": [1, 2]},
        "sampler": {"inputs": inputs},
    }
    found = []
    for own, guided in ((settings, Guided(teacher, None)), (settings | {"model": {}}, Guided(teacher, scale))):
        measure = build_ode_error(own, source, guided)("cpu")
        found.append(measure(lambda x, sigma, labels: x).rms)
    assert_close(*found)
