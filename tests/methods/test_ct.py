"""Every method as it is configured: it trains, on any device, and says what its teacher was asked."""

import csv
from contextlib import nullcontext

import pytest
import torch
from jobs import ROOT, TINY, config_of, distilling
from torch import nn

from consistency_models.app.build import build_data, build_method
from consistency_models.app.run import run_job
from consistency_models.data import Slot
from consistency_models.errors import Exit
from consistency_models.noise.schedules import per_image
from consistency_models.random import BatchRandom
from consistency_models.storage.checkpoints import read

EXACT = "teacher=exact"
SEGMENTS = [
    (f"model=mcm model.segments={S} {teacher}", float(teacher == EXACT)) for S in (1, 2, 8) for teacher in ("", EXACT)
]
KNOWN = [  # commands, and the teacher's calls an image; the calls of Direct CM depend on the levels
    ("model=teacher", 0),
    ("model=ct", 0),
    ("model=ict", 0),
    (f"model=cd {EXACT}", 2),
    (f"model=cd solver=euler model.target_ema=null {EXACT}", 1),
    *SEGMENTS,
    (f"model=mcm solver=euler schedule=segments_karras {EXACT}", 1),
    (f"model=mcm solver=heun curriculum=constant weighting=edm model.weight_inside=true {EXACT}", 2),
    (f"model=mcm solver=addim solver.eta=null {EXACT}", 1),
    (f"model=tract {EXACT}", 1),
    (f"model=tract model.phases=[16,8,4] model.segments=2 {EXACT}", 1),
    (f"model=dcm {EXACT}", None),
    (f"model=dcm solver=euler {EXACT}", None),
    (f"model=cmt {EXACT}", 34),
    ("model=ect", 0),
    ("model=sct", 0),
    ("model=sct preconditioning=edm recipe=sct_digits model.tangent_rms=true model.tangent_clip=1", 0),
    (f"model=lcm network=mlp {EXACT}", 1),
    (f"model=scd {EXACT}", 1),
    (
        "model=scd data.conditional=true model.guidance_input=[1,2] teacher.guidance=null network.augment_dim=1 "
        f"sampler.inputs=[0.5] {EXACT}",
        2,
    ),
    (f"model=tcm {EXACT}", 1),
    ("model=meanflow", 0),
    ("model=meanflow model.own_velocity=true schedule.by_position=false", 0),
    ("model=alphaflow", 0),
    ("model=alphaflow model.stop=0.01 model.clip=4", 0),
    (f"model=ayf {EXACT}", 1),
    ("model=facm", 0),
    ("model=facm model.two_times=false sampler=consistency_from_zero model.difference=1e-3", 0),
    ("model=imf", 0),
    (
        "model=imf data.conditional=true model.guidance_input=2 model.label_dropout=0.3 network.augment_dim=3",
        0,
    ),
    (f"model=facm {EXACT}", 1),
    ("model=shortcut", 0),
    ("model=imm", 0),
]
RUNS = KNOWN + [  # every other method of conf/, so that a new one needs no row
    (f"model={name}" + f" {EXACT}" * (name in distilling()), None)
    for name in sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
    if not any(command.split()[0] == f"model={name}" for command, _ in KNOWN)
]


class Plain(nn.Module):
    """A network that runs on a device without values."""

    num_classes = 0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, labels, augment, c_end=None):
        c_noise = c_noise if c_end is None else c_noise + c_end
        return self.weight * x * per_image(c_noise, x)


class MetaRows(BatchRandom):
    """Draws for such a device."""

    def randn(self, stream, *shape, device="cpu", dtype=torch.float32):
        return super().randn(stream, *shape, dtype=dtype).to(device)


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: run[0].replace(" ", "-"))
def job(request, tmp_path_factory):
    """(command, teacher's calls, configuration, folder)."""
    (command, calls), folder = request.param, tmp_path_factory.mktemp("run")
    steps = ("data.batch_size=64", "trainer.max_steps=8")
    return command, calls, config_of(folder, "data=mixture", *TINY, *steps, *command.split()), folder


def test_it_trains(job):
    command, calls, config, folder = job
    code, _ = run_job(config, folder)
    assert code == Exit.DONE
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(0 < float(row["train/loss"]) < float("inf") for row in rows)
    assert all(0 < float(row["train/gradient_norm"]) < float("inf") for row in rows)
    asked = [float(row["train/teacher_calls_per_image"]) for row in rows]
    if calls is None:
        each = 1 if "euler" in command else 2
        assert all(abs(mean - each * 9) < 4 * each for mean in asked)  # 1 to 17 steps
        assert len(set(asked)) > 1
    else:
        assert set(asked) == {float(calls)}
    weights = read(folder / "checkpoints/last.ckpt")["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_the_host_never_waits_for_the_device(job, monkeypatch):
    """A meta tensor has no values: whatever asked for one would fail."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    *_, config, _ = job
    method, rows = build_method(config), MetaRows(0, 0, 64, slice(0, 64))
    for model in (method.model, method.target_model):
        model.network = Plain()
    batch = build_data(config).source[Slot(rows, None)]
    method.to("meta").training_step(batch.to("meta"), 0).backward()
    assert method.model.network.weight.grad is not None
