"""Improved MeanFlow: its own velocity, the second head, and the guidance as an input."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from methods.test_flow_maps import exact, marginal_velocity, random_mlp, step, trained_on
from torch.testing import assert_close

from consistency_models.methods.meanflow import MeanFlow
from consistency_models.noise.schedules import Levels
from consistency_models.sampling.samplers import FlowMapSampler


def test_own_velocity_gives_the_exact_map_its_own_target_whatever_the_data_point():
    """The derivative no longer contains n - x0: its part of the target is the same for all pairs behind one x_t."""
    made = step()
    meanflow = exact(MeanFlow, own_velocity=True)
    correction = meanflow.target(made) - (made.noise - made.x)
    expected = meanflow.online(made) - marginal_velocity(made)
    assert_close(correction, expected, rtol=1e-9, atol=1e-9)


def improved(**arguments):
    network = random_mlp(num_classes=3, outputs=2, augment_dim=3)
    own = {"own_velocity": True, "guidance_input": 1.0, "label_dropout": 0.5}
    return trained_on(MeanFlow, network, **own | arguments)


def guided_step(trained, part=slice(0, 6), **arguments):
    """The rows `part` of a step with classes and with the inputs of the guidance."""
    made = step(**arguments)
    made.levels = Levels(made.levels.high[part], made.levels.low[part], made.levels.end[part])
    made.x, made.noise, made.x_t = made.x[part], made.noise[part], made.x_t[part]
    made.rows, made.classes = replace(made.rows, local_slice=part), (torch.arange(6) % 3)[part]
    made.labels = trained.encode_labels(made.classes, made.rows).double()
    made.augment = trained.inputs(made)
    return made


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_the_inputs_of_the_guidance(beta):
    """A power law; rows with r = t are guided at all times; the same in any division of the batch."""
    trained = improved(guidance_input=beta)
    made = guided_step(trained, equal=[1])
    scale, low, high = made.augment.unbind(1)
    u = made.rows.rand("guidance", 3, dtype=torch.float64)[:, 0]
    omega = 1 / (1 - scale)
    below = omega.log() / math.log(8) if beta == 1 else (omega ** (1 - beta) - 1) / (8 ** (1 - beta) - 1)
    assert_close(below, u, rtol=1e-9, atol=1e-12)
    assert (low[1], high[1]) == (0, 1)
    assert ((low >= 0) & (low <= 0.5) & (high >= 0.5) & (high <= 1)).all()
    assert torch.equal(guided_step(trained, slice(2, 5), equal=[1]).augment, made.augment[2:5])


def test_improved_meanflow_is_guided_inside_the_interval_and_where_the_class_is_shown():
    trained = improved()
    made = guided_step(trained, equal=[0, 1, 4])
    t = made.levels.high / (1 + made.levels.high)
    scale, low, high = made.augment.unbind(1)
    with torch.no_grad():
        v, along = trained.velocities(made)
    changed = (v != made.noise - made.x).flatten(1).any(1)
    shown = made.labels.sum(1) > 0
    assert 0 < shown.sum() < 6
    assert torch.equal(changed, shown & (t >= low) & (t <= high))
    everywhere = torch.stack([scale.where((t >= low) & (t <= high), 0), 0 * scale, 0 * scale + 1], 1)
    classes = torch.eye(3, dtype=torch.float64)[made.classes]
    trained.eval()
    own = trained.model.raw(made.x_t, made.levels.high, classes, everywhere, made.levels.high)[:, 1:]
    assert torch.equal(along, own)


def test_the_second_head_is_trained_on_the_velocity():
    """At r = t both outputs have the same target, the guided velocity, and the same loss."""
    trained = improved(power=0.0)
    made = guided_step(trained, equal=[0, 3])
    online = trained.online(made)
    made.online = online.detach()
    u, w = trained.target(made).chunk(2, 1)
    assert torch.equal(w, trained.velocities(made)[0])
    assert torch.equal(u[[0, 3]], w[[0, 3]])
    assert not torch.isclose(u[[1, 2]], w[[1, 2]]).any()
    assert_close(
        trained.loss(made, online, torch.cat([u, w], 1)), (online - torch.cat([u, w], 1)).square().flatten(1).sum(1)
    )


def test_the_sampler_passes_the_inputs_of_the_network():
    model, noise = improved().model, torch.randn(4, 1, 2, 2, dtype=torch.float64)
    labels, given = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]], [0.75, 0.25, 0.5]
    found = FlowMapSampler(steps=1, inputs=given)(partial(model, labels=labels), noise, None)
    x, sigma = 80 * noise, torch.full((4,), 80.0, dtype=torch.float64)
    augment = torch.tensor(given, dtype=torch.float64).expand(4, -1)
    assert_close(found, model(x, sigma, labels, augment, 0 * sigma))
    plain = FlowMapSampler(steps=1)(partial(model, labels=labels), noise, None)
    assert_close(plain, model(x, sigma, labels, 0 * augment, 0 * sigma))
    assert not torch.isclose(found, plain).any()
