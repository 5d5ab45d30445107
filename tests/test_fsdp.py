"""Two processes that divide the weights take the steps of one process, and leave its checkpoints."""

import csv
import subprocess
import sys

import pytest
import torch
from jobs import ROOT, TINY, run, run_two

from consistency_models import load
from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read

SHARDED = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2")
STEPS = (
    *(argument for argument in TINY if argument.startswith(("logger", "callbacks.metrics", "callbacks.progress"))),
    "data.batch_size=16",
    "trainer.max_steps=4",
    "trainer.gradient_clip_val=0.5",
    "callbacks.checkpoint.keep_every=2",
    "callbacks.validation.every_n_steps=4",
    "callbacks.samples.every_n_steps=4",
    "evaluation.n=32",
)
# CT has a slow target network. Sharded weights have the default layout, so the one process has it, too.
CT = ("model=ct", "data=digits", "network.model_channels=8", "channels_last=false", "evaluation.ode_points=0")
CT = (*CT, "features=identity")  # the default features are those of a classifier, which is trained first
MIXTURE = ("data=mixture", "network.width=8", "callbacks.samples.points=16", "evaluation.ode_points=8")
SLOW = {
    "sct": ("model=sct", *MIXTURE),
    "meanflow": ("model=meanflow", *MIXTURE),
    "alphaflow": ("model=alphaflow", *MIXTURE),
    "ayf": ("model=ayf", "teacher=exact", *MIXTURE),
    "facm": ("model=facm", "model.two_times=false", "sampler=consistency_from_zero", *MIXTURE),
    # The second process has no rows of two half steps.
    "shortcut": ("model=shortcut", "schedule.share=0.5", *MIXTURE),
}


def train(folder, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), *arguments, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def tensors(tree, name=""):
    """{path: tensor} of a tree of dicts and lists."""
    if isinstance(tree, torch.Tensor):
        assert type(tree) is torch.Tensor
        return {name: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {path: leaf for key, value in pairs for path, leaf in tensors(value, f"{name}/{key}").items()}


def state(folder):
    content = read(folder / "checkpoints/last.ckpt")
    return tensors({key: content[key] for key in ("model", "target", "method", "ema", "optimizer")})


def figures(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)]


def assert_equal_within(tolerance, folder, other):
    """Weights, averages, target, optimiser, and losses and gradient norms of every step."""
    found, expected = state(folder), state(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)
    for row, wanted in zip(figures(folder), figures(other), strict=True):
        for name in ("train/loss", "train/gradient_norm"):
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    "method", [pytest.param(CT, id="ct"), *(pytest.param(SLOW[n], marks=pytest.mark.slow, id=n) for n in SLOW)]
)
def test_sharded_steps_are_those_of_one_process(method, tmp_path):
    """Forward-mode derivatives among them; the checkpoint is loaded without processes."""
    assert run(tmp_path / "one", *STEPS, *method, "trainer=cpu") == Exit.DONE
    run_two(tmp_path / "two", *STEPS, *method, *SHARDED)
    assert_equal_within(1e-6, tmp_path / "two", tmp_path / "one")
    assert len(list((tmp_path / "two/samples").glob("*.png"))) >= 2
    contents = [read(tmp_path / name / "checkpoints/last.ckpt")["trainer"]["callbacks"] for name in ("one", "two")]
    films = [tensors(content.get("SampleGrids", {})) for content in contents]  # uint8; of images only
    assert films[0].keys() == films[1].keys()
    assert all((films[1][step].int() - frame.int()).abs().max() <= 1 for step, frame in films[0].items())
    samples = [load(tmp_path / name).sample(4, steps=1, seed=0) for name in ("one", "two")]
    torch.testing.assert_close(*samples, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_training_is_resumed_bit_for_bit(tmp_path):
    train(tmp_path / "whole", *STEPS, *CT, *SHARDED)
    half = tmp_path / "whole/checkpoints/step_00000002.ckpt"
    train(tmp_path / "resumed", *STEPS, *CT, *SHARDED, f"ckpt_path={half}")
    found, expected = state(tmp_path / "resumed"), state(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert figures(tmp_path / "resumed") == figures(tmp_path / "whole")[2:]
    assert run(tmp_path / "one", *STEPS, *CT, "trainer=cpu", f"ckpt_path={half}") == Exit.DONE  # and by one process
    assert_equal_within(1e-6, tmp_path / "one", tmp_path / "resumed")


def test_a_network_that_cannot_be_divided_is_refused(tmp_path, capsys):
    small = (
        "network.model_channels=16",
        "network.channel_mult=[1]",
        "network.num_blocks=1",
        "network.attn_resolutions=[]",
    )
    one = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "data=digits", "data.batch_size=8")
    assert run(tmp_path, *TINY[1:], *one, "network=edm2", *small) == Exit.BAD_INPUT
    assert "out_gain is a single number" in capsys.readouterr().err
