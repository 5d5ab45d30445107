"""Trainings on latents with captions: adapters and all weights, resumed, accumulated, loaded."""

import hashlib
import json
import shutil

import pytest
import torch
from app.evals import evaluate
from jobs import GRADIENT_STEP, config_of, crash, run, run_two
from latents.conftest import LORA
from resume.test_resume import assert_same, contents

from consistency_models import load
from consistency_models.app.pipelines import with_pipeline
from consistency_models.app.plan import cost
from consistency_models.conditions import Prompt
from consistency_models.errors import CheckpointError, Exit
from consistency_models.export import to_diffusers
from consistency_models.networks.lora import shared_names
from consistency_models.storage.checkpoints import read, write

TENSORS = 158  # A and B of 79 layers


def test_a_checkpoint_of_adapters_holds_the_adapters_only(lora_run, full_run, sd_folder):
    content = read(lora_run / "checkpoints/last.ckpt")
    assert len(content["model"]) == len(content["ema"]["0.5"]) == TENSORS
    assert content["target"] is None
    assert all(".lora_" in name for name in content["model"])
    weights = sd_folder / "unet/diffusion_pytorch_model.safetensors"
    assert content["teacher"] == {
        "path": str(sd_folder),
        "digest": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    sizes = [(folder / "checkpoints/last.ckpt").stat().st_size for folder in (lora_run, full_run)]
    assert sizes[0] < sizes[1] / 5


def test_adapters_are_resumed_bit_identically(lora_run, arguments, tmp_path):
    assert run(tmp_path, *arguments(*LORA), callbacks=crash(3)) == Exit.UNEXPECTED
    assert run(tmp_path, *arguments(*LORA, f"ckpt_path={tmp_path}")) == Exit.DONE
    assert_same(contents(lora_run), contents(tmp_path))


def test_all_weights_are_resumed_bit_identically(full_run, arguments, tmp_path):
    assert run(tmp_path, *arguments(), callbacks=crash(3)) == Exit.UNEXPECTED
    assert run(tmp_path, *arguments(f"ckpt_path={tmp_path}")) == Exit.DONE
    assert_same(contents(full_run), contents(tmp_path))


@pytest.fixture(scope="module")
def one_step(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step")
    assert run(folder, *arguments(*LORA, *GRADIENT_STEP)) == Exit.DONE
    return read(folder / "checkpoints/last.ckpt")["model"]


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.accumulate_grad_batches=2"],
        pytest.param(["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"], marks=pytest.mark.slow),
    ],
    ids=["micro-batches", "two-processes"],
)
def test_the_same_step(more, one_step, arguments, tmp_path):
    line = arguments(*LORA, *GRADIENT_STEP, *more)
    if "trainer=ddp" in more:
        run_two(tmp_path / "run", *line)
    else:
        assert run(tmp_path / "run", *line) == Exit.DONE
    found = read(tmp_path / "run/checkpoints/last.ckpt")["model"]
    for name, value in one_step.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_layers_that_do_not_exist_are_named(arguments, tmp_path, capfd):
    assert run(tmp_path, *arguments(*LORA, "network.lora.targets=[no_such_layer]")) == Exit.BAD_INPUT
    assert "no_such_layer" in capfd.readouterr().err


def test_adapters_are_loaded_onto_the_base(lora_run, sd_folder):
    student, teacher = load(lora_run).model, load(sd_folder).model
    weights = dict(teacher.network.unet.named_parameters())
    shared = shared_names(student.network)
    assert len(shared) == len(weights)
    for name, parameter in student.network.named_parameters():
        if name in shared:
            assert torch.equal(parameter, weights[name.removeprefix("unet.").replace(".base_layer.", ".")]), name


def test_a_base_that_is_moved_gone_or_changed(arguments, sd_folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(sd_folder, tmp_path / "sd")
    monkeypatch.chdir(tmp_path)
    line = [*arguments(*LORA, "trainer.max_steps=1"), "teacher.path=sd"]
    assert run(tmp_path / "run", *line) == Exit.DONE
    export = f"python -m consistency_models.export {tmp_path / 'run'} OUT --format diffusers"
    assert f"next      {export}" in capsys.readouterr().out
    monkeypatch.chdir("/")  # the checkpoint has the whole path
    assert load(tmp_path / "run").pipeline == str(tmp_path / "sd")
    moved = (tmp_path / "sd").rename(tmp_path / "moved")
    line[-1] = f"teacher.path={moved}"
    assert run(tmp_path / "run", *line, "trainer.max_steps=2", f"ckpt_path={tmp_path / 'run'}") == Exit.DONE
    load(tmp_path / "run")
    from safetensors.torch import load_file, save_file

    weights = moved / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: value + 1e-3 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the base of the adapters.*not "):
        load(tmp_path / "run")
    assert run(tmp_path / "run", *line, "trainer.max_steps=3", f"ckpt_path={tmp_path / 'run'}") == Exit.BAD_INPUT
    shutil.rmtree(moved)
    with pytest.raises(CheckpointError, match="put it back"):
        load(tmp_path / "run")


def test_latents_of_another_size_than_the_teachers(full_run, tmp_path):
    """A run on latents of 16x16, of a U-Net with the sample_size 8: loaded, sampled from, and exported."""
    content = read(full_run / "checkpoints/last.ckpt")
    content["config"]["data"]["image_size"] = 16
    write(content, tmp_path / "last.ckpt")
    generator, text = load(tmp_path / "last.ckpt"), torch.zeros(2, 77, 32)
    assert generator.sample(2, labels=Prompt(text, guidance=torch.ones(2))).shape == (2, 4, 16, 16)
    to_diffusers(generator, tmp_path / "out")
    assert load(tmp_path / "out").shape == (4, 16, 16)


def test_a_plan_counts_the_shared_weights_once(arguments, sd_folder, tmp_path):
    config = with_pipeline(config_of(tmp_path, *arguments(*LORA)))
    found = cost(config)
    teacher = sum(parameter.nbytes for parameter in load(sd_folder).model.parameters())
    assert found.parameters == 36928
    assert found.fixed_bytes == teacher + 4 * 4 * 36928  # adapters, two moments, one average


def test_search_of_levels_takes_the_texts_of_the_data(full_run):
    """Levels below those of the table are not searched."""
    assert evaluate(full_run, "task=search", "n=4", "task.grid=5", "task.images=4") == Exit.DONE
    first, second = json.loads((full_run / "evaluation/search.json").read_text())["sigmas"]
    assert first > second > load(full_run).model.preconditioning.sigma_min
