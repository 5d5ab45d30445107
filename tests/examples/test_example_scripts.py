"""The scripts of examples/ run, with few steps."""

import importlib
import sys

import pytest
import torch
from data.conftest import write
from jobs import ROOT, run
from PIL import Image

from consistency_models.errors import Exit

EDM = ROOT / "tests/golden/edm/edm_snapshot_song.pkl"


@pytest.fixture
def example(monkeypatch, tmp_path):
    """`example(name)`: the main function of a script, in an empty folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(tmp_path)
    return lambda name: importlib.import_module(name).main


@pytest.fixture
def images(tmp_path):
    pixels = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8).numpy()
    return write(tmp_path / "images", {f"{i}.png": image for i, image in enumerate(pixels)})


def test_training_from_python(example, tmp_path):
    generator = example("train_from_python")(["--steps", "2"])
    assert generator.sample(3, steps=2).shape == (3, 1, 8, 8)
    assert Image.open(tmp_path / "digits.png").size == (30 * 10 + 2, 2 * 10 + 2)


def test_the_script_is_short():
    assert len((ROOT / "examples/train_from_python.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("method", ["ect", "cd"])
def test_distillation_of_an_official_file(example, images, method):
    main = example("distil_edm")
    student = main([str(EDM), str(images), "--method", method, "--steps", "2", "--batch-size", "4", "--out", method])
    weights = torch.load(f"{method}.pt", weights_only=True)
    assert student.sample(2).shape == (2, 3, 8, 8)
    assert weights.keys() == student.model.network.state_dict().keys()
    untrained = main([str(EDM), str(images), "--steps", "0", "--out", "untrained"]).model.network.state_dict()
    assert any((weights[name] != untrained[name]).any() for name in weights)


def test_distillation_of_a_run(example, tmp_path):
    small = ("data=digits", "network.model_channels=16", "network.channel_mult=[1,1]", "data.batch_size=8")
    quick = ("trainer=cpu", "logger=csv", "callbacks.samples=null", "callbacks.validation=null", "trainer.max_steps=1")
    assert run(tmp_path / "teacher", "model=teacher", *small, *quick) == Exit.DONE
    pixels = torch.randint(0, 256, (10, 8, 8), dtype=torch.uint8).numpy()
    images = write(tmp_path / "images", {f"{i}/0.png": image for i, image in enumerate(pixels)})
    student = example("distil_edm")([str(tmp_path / "teacher"), str(images), "--method", "cd", "--steps", "1"])
    assert student.num_classes == 10


def test_a_block_stays_empty_for_a_number_of_steps_without_a_sampler(example, capsys):
    figure = example("same_noise")([str(EDM), "--steps", "0", "1", "--columns", "2"])
    assert [len(axis.images) for axis in figure.axes] == [0, 1]
    assert capsys.readouterr().out.startswith("edm_snapshot_song: no images in 0 steps: ")


@pytest.mark.parametrize(("name", "reason"), [("", "exists: name a new folder"), ("new", 'pip install -e ".[latent]"')])
def test_the_demonstration_is_refused_in_one_line(name, reason, example, tmp_path, monkeypatch, capsys):
    main = example("captioned_digits")
    monkeypatch.setattr("captioned_digits.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["captioned_digits.py", str(tmp_path / name)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert reason in capsys.readouterr().err


def test_the_same_noise_in_all_rows(example, tmp_path):
    figure = example("same_noise")([str(EDM), f"a caption={EDM}", "--steps", "1", "2", "--columns", "3"])
    pictures = [axis.images[0].get_array() for axis in figure.axes]
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["edm_snapshot_song", "a caption"]
    assert [axis.texts[0].get_text() for axis in figure.axes[1::2]] == ["3 calls"] * 2  # two steps of Heun
    assert (pictures[0] == pictures[2]).all()
    assert (pictures[0] != pictures[1]).any()
    with Image.open(tmp_path / "same_noise.png") as image:
        assert image.width > 300
