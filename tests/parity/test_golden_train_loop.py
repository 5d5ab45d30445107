"""Trainings under Lightning against the official training loops: parameters, target and averages after each step."""

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer
from parity.golden import TinyNet, cases, constants, load

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.data.batch import Batch
from consistency_models.losses import distances, weightings
from consistency_models.methods.cd import ConsistencyDistillation
from consistency_models.methods.ct import ConsistencyTraining
from consistency_models.methods.teacher import Diffusion
from consistency_models.noise import curricula, schedules
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary
from consistency_models.optim.ema import Constant as ConstantEMA
from consistency_models.optim.learning_rates import Linear
from consistency_models.sampling import solvers


@dataclass
class GivenRows:
    """BatchRandom whose noise is the file's."""

    step: int
    noise: torch.Tensor

    @property
    def total(self):
        return len(self.noise)

    def __len__(self):
        return len(self.noise)

    def randn(self, stream, *shape, **_):
        return self.noise

    def seed_dropout(self):
        pass


def given_levels(case, method, curriculum, fixed):
    """A schedule that takes the file's indices (official code counts them from sigma_max down), or its normals."""

    def draw(rows, k, K):
        if method == "edm":
            sigma = torch.exp(-1.2 + 1.2 * case["edm_z"][k])
            return schedules.Levels(high=sigma, low=torch.zeros_like(sigma))
        N = curriculum(k, K)
        grid = schedules.karras_grid(N, fixed["sigma_min"], fixed["sigma_max"], fixed["rho"])
        index = N - 2 - case[f"{method}_indices"][k]
        return schedules.Levels(high=grid[index + 1].float(), low=grid[index].float())

    return draw


def build(path, method):
    """The method, and mu(k) and N(k) as the file's schedule says."""
    case, fixed = load(path), constants(path)
    wanted = json.loads(case.get(f"{method}_schedule", "{}"))
    curriculum = decay = None
    if wanted:
        start, end = wanted["start_scales"], wanted["end_scales"]
        curriculum = curricula.Constant(start) if wanted["scale_mode"] == "fixed" else curricula.Progressive(start, end)
        initial = wanted["start_ema"]
        constant = wanted["target_ema_mode"] == "fixed"
        decay = curricula.ConstantDecay(initial) if constant else curricula.AdaptiveDecay(initial, curriculum)
    edm, scalings = method == "edm", EDM(fixed["sigma_data"])
    extra = {}
    if method == "cd":
        extra = {"teacher": Preconditioned(TinyNet(case, "teacher", torch.float32), scalings), "solver": solvers.Heun()}
    boundary = Boundary(fixed["sigma_data"], fixed["sigma_min"])
    kind = {"edm": Diffusion, "ct": ConsistencyTraining, "cd": ConsistencyDistillation}[method]
    return kind(
        model=Preconditioned(TinyNet(case, "online", torch.float32), scalings if edm else boundary),
        schedule=given_levels(case, method, curriculum, fixed),
        distance=distances.SquaredL2(),
        weighting=weightings.EDM(fixed["sigma_data"]) if edm else weightings.Uniform(),
        optimizer=partial(torch.optim.RAdam, lr=float(case["lr"])),
        learning_rate=Linear(),
        total_steps=wanted.get("total_steps", len(case["x"])),
        target_ema=decay,
        **extra,
    ), (curriculum, decay)


class Recorder(Callback):
    """Parameters after each step, flattened in the file's order."""

    def __init__(self, average):
        self.average, self.seen = average, defaultdict(list)

    def on_train_batch_end(self, trainer, method, outputs, batch, index):
        parts = {"params": method.model.parameters()}
        if method.target_ema is not None:
            parts["target"] = method.target_copy.parameters()
        parts |= {f"ema{i}": tensors for i, tensors in enumerate(self.average.averages.values())}
        for name, tensors in parts.items():
            self.seen[name].append(torch.cat([t.detach().flatten() for t in tensors]).clone())
        self.seen["loss"].append(outputs["loss"].detach())


@pytest.mark.parametrize(("path", "method"), cases("(cd|ct|edm)_params"))
def test_training_takes_the_official_steps(path, method, tmp_path):
    case = load(path)
    module, (curriculum, decay) = build(path, method)
    steps, total = len(case["x"]), module.total_steps
    average = WeightEMA(ConstantEMA([float(rate) for rate in case.get("ema_rates", [0.999])]))
    recorder = Recorder(average)
    batches = [Batch(case["x"][k], None, GivenRows(k, case["noise"][k])) for k in range(steps)]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[average, recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    if f"{method}_N" in case:
        assert [curriculum(k, total) for k in range(steps)] == case[f"{method}_N"].tolist()
    if f"{method}_mu" in case:
        assert [decay(k, total) for k in range(steps)] == pytest.approx(case[f"{method}_mu"].tolist(), rel=1e-12)
    for name, found in recorder.seen.items():
        expected = case.get(f"{method}_{name}")
        if expected is not None:
            expected = expected.mean(1) if name == "loss" else expected
            torch.testing.assert_close(
                torch.stack(found), expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
