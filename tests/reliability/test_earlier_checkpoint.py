"""What commit 9ab4db0 wrote is still loaded, sampled from, and trained on: the run in `earlier/`, on torch 2.15.

Its command: model=cd teacher=exact data=mixture data.conditional=true data.batch_size=32 network.width=32
network.depth=1 trainer.max_steps=12, and what `overrides.yaml` has besides. `samples.npz` was sampled by that commit.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jobs import run

import consistency_models
from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read
from consistency_models.storage.moved_names import current_override

EARLIER = Path(__file__).with_name("earlier")


@pytest.mark.parametrize("steps", [1, 2])
def test_it_is_sampled_from(steps):
    generator = consistency_models.load(EARLIER)
    images = generator.sample(6, steps=steps, seed=5, labels=list(range(6)))
    expected = np.load(EARLIER / "samples.npz")["one" if steps == 1 else "two"]
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_it_is_gone_on_with(tmp_path):
    """From step 8 to 12, near to where that commit came: the weights, averages and moments are its, the draws are new.

    Since then every 16 rows of a batch have a generator of their own, so that the random numbers are others.
    """
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(EARLIER / "checkpoints/step_00000008.ckpt", tmp_path / "checkpoints/last.ckpt")
    lines = yaml.safe_load((EARLIER / "overrides.yaml").read_text())
    overrides = [current_override(line) for line in lines if "hydra." not in line]
    assert run(tmp_path, *overrides, f"ckpt_path={tmp_path}") == Exit.DONE
    start, expected = (read(EARLIER / f"checkpoints/{name}.ckpt") for name in ("step_00000008", "last"))
    found = read(tmp_path / "checkpoints/last.ckpt")
    assert found["step"] == expected["step"] == 12
    for state in (lambda each: each["model"], lambda each: each["target"], lambda each: each["ema"]["0.995"]):
        before, there, here = (
            torch.cat([w.flatten() for w in state(each).values()]) for each in (start, expected, found)
        )
        assert 0 < (here - there).norm() < 0.5 * (there - before).norm()
