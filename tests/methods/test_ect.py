"""Easy consistency tuning: what happens at s = 0."""

import torch
from methods.steps import method, step_of
from torch import nn

from consistency_models.methods.ect import EasyConsistencyTuning
from consistency_models.noise.schedules import Levels, per_image


class Positive(nn.Module):
    """f(x, σ) = x·ln σ; not to be asked at level 0."""

    def forward(self, x, sigma, labels=None, augment=None):
        assert (sigma > 0).all()
        return x * per_image(sigma.log(), x)


def test_the_target_at_level_0_is_the_clean_image_and_elsewhere_the_model():
    x, noise = torch.randn(2, 4, 3, 2, 2)
    high, low = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.5, 0.0, 3.0])
    step = step_of(x, noise, Levels(high, low))
    target = method(EasyConsistencyTuning, Positive()).target(step)
    zero = low == 0
    assert torch.equal(target[zero], x[zero])
    assert torch.equal(target[~zero], Positive()(step.at(low.clamp(min=1)), low.clamp(min=1))[~zero])
