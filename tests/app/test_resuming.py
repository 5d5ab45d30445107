"""What is said, and what is counted, when a run goes on with other settings."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from jobs import TINY, command, run
from lightning import Callback
from PIL import Image

from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.errors import Exit
from consistency_models.storage.checkpoints import read, write

RUN = (*TINY, "data=mixture", "data.batch_size=16", "trainer.max_steps=4")


def test_a_longer_training_does_not_go_back_to_an_earlier_phase(tmp_path, capsys):
    """A checkpoint has the teacher of its own phase only."""
    phased = (*RUN, "model=tract", "teacher=exact", "model.phases=[8,4]", "model.segments=2")
    assert run(tmp_path, *phased) == Exit.DONE
    checkpoint = (tmp_path / "checkpoints/last.ckpt").read_bytes()
    assert run(tmp_path, *phased, "trainer.max_steps=12", f"ckpt_path={tmp_path}") == Exit.BAD_INPUT
    error = capsys.readouterr().err
    assert "trainer.max_steps=12 is not allowed: step 4 was in phase 1, and is in phase 0 of this training" in error
    assert "init=run" in error
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == checkpoint
    assert run(tmp_path, *phased, "trainer.max_steps=8", f"ckpt_path={tmp_path}") == Exit.DONE


def test_images_are_counted_over_a_change_of_the_batch_size(tmp_path):
    assert run(tmp_path, *RUN, "trainer.max_steps=2") == Exit.DONE
    assert run(tmp_path, *RUN, "data.batch_size=32", f"ckpt_path={tmp_path}") == Exit.DONE
    assert json.loads((tmp_path / "summary.json").read_text())["images_seen"] == 2 * 16 + 2 * 32
    assert read(tmp_path / "checkpoints/last.ckpt")["images_seen"] == 2 * 16 + 2 * 32
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [float(row["train/images_seen"]) for row in csv.DictReader(file)] == [16, 32, 64, 96]
    more = ("trainer.max_steps=100", "trainer.max_images=150", f"ckpt_path={tmp_path}")
    assert run(tmp_path, *RUN, *more) == Exit.DONE
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 4 + 4  # 96 + 4 x 16 >= 150
    seen = ImagesSeen(16, step=4, images=96)
    assert [seen(4), seen(6), seen.steps_until(90), seen.steps_until(97)] == [96, 128, 4, 5]


@pytest.mark.parametrize("batch_size", [16, 8])
def test_a_checkpoint_without_a_count_has_its_own_batch_size(batch_size, tmp_path):
    assert run(tmp_path, *RUN, "trainer.max_steps=2") == Exit.DONE
    content = read(tmp_path / "checkpoints/last.ckpt")
    del content["images_seen"], content["trainer"]["processes"]
    write(content, tmp_path / "checkpoints/last.ckpt")
    assert run(tmp_path, *RUN, f"data.batch_size={batch_size}", f"ckpt_path={tmp_path}") == Exit.DONE
    assert json.loads((tmp_path / "summary.json").read_text())["images_seen"] == 2 * 16 + 2 * batch_size


def test_what_changed_is_listed(tmp_path, caplog):
    assert run(tmp_path, *RUN, "trainer.max_steps=2") == Exit.DONE
    content = read(tmp_path / "checkpoints/last.ckpt")
    content["trainer"]["processes"] = 2
    write(content, tmp_path / "checkpoints/last.ckpt")
    changes = ("data.batch_size=8", "seed=5", "optimizer.lr=0.5", "ema.decays=[0.9]", "trainer.precision=bf16-mixed")
    assert run(tmp_path, *RUN, *changes, "callbacks.metrics.every_n_steps=2", f"ckpt_path={tmp_path}") == Exit.DONE
    (line,) = [record.getMessage() for record in caplog.records if "changed against" in record.getMessage()]
    for part in ("data.batch_size 16 -> 8", "seed 0 -> 5", "-> 0.5", "ema.decays [0.995] -> [0.9]", "processes 2 -> 1"):
        assert part in line
    assert "trainer.precision 32-true -> bf16-mixed" in line
    assert "callbacks" not in line
    assert "ckpt_path" not in line


def test_other_images_of_the_same_folder_are_listed(tmp_path, caplog):
    root = tmp_path / "images"
    root.mkdir()
    data = ("data=image_folder", f"data.root={root}", "data.image_size=8", "features=identity", "data.batch_size=4")
    for grey in range(8):
        Image.fromarray(np.full((8, 8, 3), 20 * grey, np.uint8)).save(root / f"{grey}.png")
    assert run(tmp_path / "run", *TINY, *data, "trainer.max_steps=2") == Exit.DONE
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(root / "0.png")
    again = ("trainer.max_steps=4", f"ckpt_path={tmp_path / 'run'}")
    assert run(tmp_path / "run", *TINY, *data, *again) == Exit.DONE
    (line,) = [record.getMessage() for record in caplog.records if "changed against" in record.getMessage()]
    assert re.search(r"digest of the training images \w{32} -> \w{32}", line)
    assert "n of the training images" not in line
    caplog.clear()
    (root / "7.png").unlink()
    again = ("trainer.max_steps=6", f"ckpt_path={tmp_path / 'run'}", "data.source.storage=encoded")
    assert run(tmp_path / "run", *TINY, *data, *again) == Exit.DONE
    (line,) = [record.getMessage() for record in caplog.records if "changed against" in record.getMessage()]
    assert "n of the training images 8 -> 7" in line
    assert "digest" not in line


def test_nothing_is_listed_where_nothing_changed(tmp_path, caplog):
    assert run(tmp_path, *RUN, "callbacks.checkpoint.every_n_steps=2") == Exit.DONE
    (tmp_path / "checkpoints/last.ckpt").unlink()
    assert run(tmp_path, *RUN, f"ckpt_path={tmp_path}") == Exit.DONE  # goes on from previous.ckpt
    assert "the newest good one" in caplog.text
    assert "changed against" not in caplog.text


@pytest.mark.parametrize("optimizer", ["optimizer=adam", "optimizer=adamw"])
def test_another_optimiser_starts_anew(optimizer, tmp_path, caplog):
    sgd = ("optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps")
    assert run(tmp_path, *RUN, *sgd, "trainer.max_steps=2") == Exit.DONE
    assert run(tmp_path, *RUN, optimizer, f"ckpt_path={tmp_path}") == Exit.DONE
    assert "the optimiser starts anew" in caplog.text
    assert "optimizer._target_ torch.optim.SGD -> " in caplog.text
    state = read(tmp_path / "checkpoints/last.ckpt")["optimizer"]["state"]
    assert {int(each["step"]) for each in state.values()} == {2}


def test_a_checkpoint_of_another_form_is_one_line(tmp_path, capsys):
    assert run(tmp_path / "a", *RUN) == Exit.DONE
    good = read(tmp_path / "a/checkpoints/last.ckpt")
    changes = [
        {"model": 5},
        {"trainer": [1]},
        {"trainer": {**good["trainer"], "images": 5}},
        {"config": "text"},
        {"ema": {"0.995": {}}},
        {"optimizer": {"state": 3}},
    ]
    for i, change in enumerate(changes):
        write({**good, **change}, tmp_path / f"{i}.ckpt")
        capsys.readouterr()
        code = run(tmp_path / str(i), *RUN, "trainer.max_steps=6", f"ckpt_path={tmp_path / f'{i}.ckpt'}")
        errors = capsys.readouterr().err.splitlines()
        assert (code, len(errors)) in [(Exit.NO_GOOD_CHECKPOINT, 1), (Exit.DONE, 0)], (change, errors)
        assert code == Exit.DONE or errors[0].startswith("error: "), change


class Broken(Callback):
    """Fails after the first step of a resumed run, or before it with an error of the device."""

    def __init__(self, device=False):
        self.device = device

    def on_train_batch_start(self, trainer, *_):
        if self.device:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if trainer.global_step > 2:
            raise RuntimeError("the disk of the logger is full")


def test_errors_of_another_cause_are_not_those_of_the_checkpoint(tmp_path, capsys):
    assert run(tmp_path, *RUN, "trainer.max_steps=2") == Exit.DONE
    more = (*RUN, "trainer.max_steps=6", f"ckpt_path={tmp_path}")
    capsys.readouterr()
    assert run(tmp_path, *more, "data.batch_size=16", "trainer.accumulate_grad_batches=3") == Exit.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data.batch_size=16 is not allowed: ")
    assert line.endswith("Allowed: a multiple of 3. Did you mean data.batch_size=15?")
    for device, expected in (
        (False, "error: RuntimeError: the disk of the logger is full"),
        (True, "error: AcceleratorError: CUDA error: an illegal memory access was encountered"),
    ):
        broken = {"callbacks": {"broken": {"_target_": f"{__name__}.Broken", "device": device}}}
        assert run(tmp_path, *more, **broken) == Exit.UNEXPECTED
        assert capsys.readouterr().err.splitlines()[-1] == expected


def test_the_best_of_another_run_is_not_that_of_this_one(tmp_path):
    """Which would end without best.ckpt if nothing is better."""
    scored = (argument for argument in RUN if argument != "callbacks.validation=null")
    scored = (*scored, "evaluation.n=20", "evaluation.ode_points=0", "callbacks.validation.every_n_steps=1")
    assert run(tmp_path / "a", *scored, "trainer.max_steps=2") == Exit.DONE
    file = tmp_path / "a/checkpoints/last.ckpt"
    content = read(file)
    for best in content["trainer"]["callbacks"]["Validation"]["best"].values():
        best["value"] = 0.0  # of a distance
    write(content, file)
    assert run(tmp_path / "b", *scored, "trainer.max_steps=3", f"ckpt_path={file}") == Exit.DONE
    assert (tmp_path / "b/checkpoints/best.ckpt").exists()
    best = json.loads((tmp_path / "b/summary.json").read_text())["metrics"]["best"]
    assert {each["step"] for each in best.values()} == {3}
    assert run(tmp_path / "a", *scored, "trainer.max_steps=3", f"ckpt_path={tmp_path / 'a'}") == Exit.DONE
    best = json.loads((tmp_path / "a/summary.json").read_text())["metrics"]["best"]
    assert {each["value"] for each in best.values()} == {0.0}  # its own


def test_a_refused_resume_leaves_settings_and_state(tmp_path):
    assert command(tmp_path, "train.py", *RUN, "trainer.max_steps=2", "hydra.run.dir=run")[0] == Exit.DONE
    kept = {name: (tmp_path / "run" / name).read_text() for name in ("config.yaml", "overrides.yaml", "DONE")}
    code, output = command(tmp_path, "train.py", "ckpt_path=run", "data=digits", "trainer.max_steps=4")
    assert code == Exit.BAD_INPUT, output
    assert "tensors differ" in output
    assert {name: (tmp_path / "run" / name).read_text() for name in kept} == kept
    assert not (tmp_path / "run/FAILED").exists()
    code, output = command(tmp_path, "train.py", "ckpt_path=run", "trainer.max_steps=4")
    assert code == Exit.DONE, output
    assert "trainer.max_steps=4" in (tmp_path / "run/overrides.yaml").read_text()
