"""A teacher gets the labels of the augmentation, and a teacher that takes none is refused."""

import pytest
import torch
from jobs import TINY, run
from methods.steps import Answers, method, step_of
from methods.test_scd_guidance import random_model
from torch import nn

from consistency_models.errors import Exit
from consistency_models.methods.ayf import AlignYourFlow
from consistency_models.methods.cd import ConsistencyDistillation
from consistency_models.methods.cmt import MidTraining
from consistency_models.methods.dcm import DirectConsistency
from consistency_models.methods.facm import FlowAnchoredConsistency
from consistency_models.methods.mcm import MultistepConsistency
from consistency_models.methods.scd import ContinuousConsistencyDistillation
from consistency_models.methods.tcm import TruncatedConsistency
from consistency_models.noise.schedules import Levels
from consistency_models.sampling.guidance import Guided

B = 4


class Teacher(nn.Module):
    """Keeps the labels of its calls."""

    def __init__(self, is_consistency_model=False):
        super().__init__()
        self.is_consistency_model, self.calls_of = is_consistency_model, []

    def forward(self, x, sigma, labels=None, augment=None):
        self.calls_of.append((labels, augment))
        return x / 2


CALLS = {
    ConsistencyDistillation: "target",
    DirectConsistency: "target",
    MidTraining: "network_input",
    MultistepConsistency: "target",
    TruncatedConsistency: "target",
    AlignYourFlow: "velocity",
    FlowAnchoredConsistency: "velocity",
    ContinuousConsistencyDistillation: "slope",
}


@pytest.mark.parametrize("guided", [False, True], ids=["a model", "guided"])
@pytest.mark.parametrize("kind", CALLS)
def test_every_call_has_the_labels_of_its_images(kind, guided):
    teacher, grid = Teacher(kind.teacher_is_consistent), torch.linspace(0.1, 2, 6).double()
    levels = Levels(grid[1:5], grid[:4], torch.zeros(B).double(), torch.arange(4), grid)
    x, noise = torch.randn(2, B, 3, 2, 2).double().unbind()
    step = step_of(x, noise, levels, torch.arange(B).double()[:, None] + 1)
    step.augmentation = 10 * step.labels
    is_continuous = kind is ContinuousConsistencyDistillation
    model = random_model(0) if is_continuous else Answers(x)
    model.two_times = kind.needs_two_times
    made = method(kind, model, Guided(teacher, 2.0, Teacher()) if guided else teacher)
    step.rows = type("Rows", (), {"seed_dropout": lambda self: None})()
    getattr(made, CALLS[kind])(step)
    assert teacher.calls_of
    assert all(torch.equal(augment, 10 * labels) for labels, augment in teacher.calls_of)
    if guided:
        assert all(torch.equal(augment, 10 * labels) for labels, augment in made._teacher[0].weak.calls_of)


def test_a_teacher_without_such_labels_is_refused(tmp_path, capsys):
    line = ("model=cd", "data=mixture", "teacher=exact", "augment=edm", *TINY)
    assert run(tmp_path, *line) == Exit.BAD_INPUT
    error = capsys.readouterr().err
    assert "the augmentation has 9 labels, and the network of this teacher takes 0" in error
    assert "Traceback" not in error


def test_a_diffusion_model_of_tcm_without_such_labels_is_refused():
    first, augment = Teacher(is_consistency_model=True), type("Augmentation", (), {"augment_dim": 9})()
    with pytest.raises(ValueError, match=r"has 9 labels, and the network of model\.diffusion takes 0"):
        method(TruncatedConsistency, Teacher(), first, diffusion=Teacher(), augment=augment)
