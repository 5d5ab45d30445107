"""Names of classes: recorded by training, and shown and understood by all that come after."""

import json
import shutil

import pytest
import torch
import yaml
from data.conftest import write
from evals import DIGITS, evaluate, trained
from jobs import run

from consistency_models.errors import Exit
from consistency_models.export.hub import to_hub
from consistency_models.export.weights import to_safetensors
from consistency_models.storage.loading import load

NAMES = ["10", "9", "bär <b>", "cat"]
DATA = ("data=image_folder", "data.image_size=8", "data.num_classes=4", "data.conditional=true", "network=small")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    def pixels(k):
        return torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(k)).numpy()

    files = {f"{name}/{k}.png": pixels(8 * i + k) for i, name in enumerate(NAMES) for k in range(5)}
    return write(tmp_path_factory.mktemp("images"), files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    return trained(tmp_path_factory.mktemp("run"), *DIGITS, *DATA, f"data.root={images}", "data.source.cache_dir=null")


def test_training_records_them(folder):
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["class_names"] == NAMES
    generator = load(folder)
    assert generator.class_names == tuple(NAMES)
    assert generator.config["data"]["class_names"] == NAMES
    assert generator.names(torch.tensor([3, 0])) == ["cat", "10"]


def test_a_report_says_them(folder):
    assert evaluate(folder) == Exit.DONE
    assert json.loads((folder / "evaluation/evaluation.json").read_text())["class_names"] == NAMES
    assert "Classes: 0 10, 1 9, 2 bär <b>, 3 cat." in (folder / "evaluation/evaluation.md").read_text()


@pytest.mark.parametrize(("label", "number"), [("cat", 3), ("9", 1), ("2", 2)])
def test_a_label_may_be_a_name(folder, label, number, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "consistency_models.sampling.generator.Generator.edit",
        lambda self, images, *a, labels, **k: asked.append(labels.tolist()) or images,
    )
    assert evaluate(folder, "task=inpaint", "n=2", f"task.label={label}") == Exit.DONE
    assert asked == [[number] * 2]


def test_a_name_that_there_is_not_is_refused(folder, capsys):
    assert evaluate(folder, "task=inpaint", "task.label=cap") == Exit.BAD_INPUT
    error = capsys.readouterr().err
    assert "task.label=cap is not allowed. Allowed: a class from 0 to 3, or its name (0 10, 1 9, " in error
    assert "id you mean task.label=cat?" in error


def test_samples_of_named_classes(folder, tmp_path):
    line = ("task=sample", "n=4", "task.classes=[cat,0]", f"task.out={tmp_path / 'out'}", "task.by_class=true")
    assert evaluate(folder, *line) == Exit.DONE
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.png")} == {"00003", "00000"}


def test_exports_keep_them(folder, tmp_path):
    generator = load(folder)
    to_safetensors(generator, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").class_names == tuple(NAMES)
    to_hub(generator, tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "4 classes: 0 10, 1 9, 2 bär &#60;b&#62;, 3 cat" in card
    assert "<b>" not in card


def test_a_checkpoint_without_names_still_loads(folder):
    from consistency_models.storage import checkpoints

    content = checkpoints.read(folder / "checkpoints/last.ckpt")
    del content["config"]["data"]["class_names"]
    checkpoints.write(content, folder / "checkpoints/old.ckpt")
    generator = load(folder / "checkpoints/old.ckpt")
    assert (generator.class_names, generator.names(torch.tensor([0]))) == ((), None)
    (folder / "checkpoints/old.ckpt").unlink()


def test_other_classes_are_not_trained_on_or_scored(folder, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "renamed")
    (tmp_path / "renamed" / "cat").rename(tmp_path / "renamed" / "aaa")
    data = (*DIGITS, *DATA, f"data.root={tmp_path / 'renamed'}", "data.source.cache_dir=null")
    code = run(tmp_path / "on", *data, f"ckpt_path={folder / 'checkpoints/last.ckpt'}", "trainer.max_steps=9")
    assert code == Exit.BAD_INPUT
    assert "that run has 0 10, 1 9, 2 bär <b>, 3 cat; the data have 0 10, 1 9, 2 aaa, " in capsys.readouterr().err
    assert evaluate(folder, f"+data.root={tmp_path / 'renamed'}") == Exit.BAD_INPUT
    assert "images of the classes 0 10, 1 9, 2 bär <b>, 3 cat" in capsys.readouterr().err


def test_data_that_were_moved_are_found_by_their_root_alone(folder, images, tmp_path):
    shutil.copytree(images, tmp_path / "moved")
    images.rename(images.with_name("away"))
    try:
        assert evaluate(folder) == Exit.BAD_INPUT
        assert evaluate(folder, f"+data.root={tmp_path / 'moved'}") == Exit.DONE
    finally:
        images.with_name("away").rename(images)
