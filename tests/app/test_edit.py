"""eval.py's editing tasks: every one with its defaults, on files and on the data set, and what they refuse."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evals import DIGITS, POINTS, evaluate, trained
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))

from commands import CONF, DummyFiles

from consistency_models.app.checks import Composer, check
from consistency_models.app.tasks import edit
from consistency_models.data import digits as digits_set
from consistency_models.data.decoding import Decoder
from consistency_models.errors import ConfigError, Exit
from consistency_models.storage.loading import load

TASKS = edit.__all__


def quick(task):
    return ["task.levels=4"] if "levels:" in (CONF / f"task/{task}.yaml").read_text() else []


def pixels(path):
    return np.asarray(Image.open(path))


def save(path, array, mode=None):
    Image.fromarray(np.asarray(array, dtype=np.uint8 if mode is None else None), mode).save(path)
    return path


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape)


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("grey"), *DIGITS)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for k in range(20):
        save(folder / f"{k:02d}.png", noise(8, 8, 3, seed=k))
    data = ("data=image_folder", f"data.root={folder}", "data.image_size=8", "network=small", *DIGITS)
    return trained(tmp_path_factory.mktemp("colour"), *data, "data.source.cache_dir=null")


def test_there_is_a_configuration_for_each():
    written = {path.stem for path in (CONF / "task").glob("*.yaml") if "tasks.edit." in path.read_text()}
    assert written == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_every_task_works_as_it_is(task, kind, request, capsys):
    run = request.getfixturevalue(kind)
    code = evaluate(run, f"task={task}", "n=4", *quick(task))
    if (task, kind) == ("colorize", "grey"):
        assert code == Exit.BAD_INPUT
        assert "error: task=colorize is not allowed: " in (err := capsys.readouterr().err)
        assert "3 channels" in err
        return
    assert code == Exit.DONE
    edits = run / "evaluation/edits"
    assert pixels(edits / f"{task}.png").ndim == 3
    results = sorted((edits / task).glob("*.png"))
    assert len(results) == (16 if task == "interpolate" else 4)
    for each in results:
        assert pixels(each).shape == ((8, 8) if kind == "grey" else (8, 8, 3))


@pytest.mark.parametrize("task", TASKS[1:])
@pytest.mark.parametrize("method", ["mcm", "teacher"])
def test_models_that_take_several_steps_edit_too(task, method, tmp_path):
    assert trained(tmp_path, f"model={method}", *DIGITS, steps=1)
    assert (
        evaluate(tmp_path, f"task={task}", "n=2", *quick(task), *(["steps=[2]"] * (method == "teacher"))) == Exit.DONE
    )


def test_kept_pixels_are_the_data_sets_bytes(grey):
    """Half the width and height in the middle is painted, all else is in the file as it was."""
    assert evaluate(grey, "task=inpaint", "n=12", *quick("inpaint")) == Exit.DONE
    known = np.ones((8, 8), bool)
    known[2:6, 2:6] = False
    expected = digits_set().images[:12, 0].numpy()
    found = np.stack([pixels(grey / f"evaluation/edits/inpaint/{k:05d}.png") for k in range(12)])
    assert (found[:, known] == expected[:, known]).all()
    assert (found[:, ~known] != expected[:, ~known]).any()


def test_black_is_kept_and_white_is_painted_in_files_too(grey, tmp_path):
    """The mask of a photograph is scaled and cropped as the photograph is."""
    photo, mask = save(tmp_path / "photo.png", noise(40, 64, 3)), np.zeros((40, 64))
    mask[:, 32:] = 255
    path = save(tmp_path / "mask.png", mask)
    files = [f"task.image={photo}", f"task.mask={path}", "task.label=3"]
    assert evaluate(grey, "task=inpaint", *files, *quick("inpaint")) == Exit.DONE
    found, expected = pixels(grey / "evaluation/edits/inpaint/photo.png"), Decoder(8, 1)(photo.read_bytes())[0]
    assert (found[:, :4] == expected[:, :4]).all()
    assert (found[:, 4:] != expected[:, 4:]).any()
    small = save(tmp_path / "small.png", np.kron([[255, 0], [0, 0]], np.ones((4, 4))))
    files[1] = f"task.mask={small}"
    assert evaluate(grey, "task=inpaint", *files, *quick("inpaint")) == Exit.DONE
    found = pixels(grey / "evaluation/edits/inpaint/photo.png")
    assert (found[4:] == expected[4:]).all()
    assert (found[:4, 4:] == expected[:4, 4:]).all()


def test_a_folder_of_files(colour, tmp_path):
    save(tmp_path / "a.png", noise(8, 8))
    save(tmp_path / "b.jpg", noise(30, 20, 3))
    (tmp_path / "notes.txt").write_text("not an image")
    assert evaluate(colour, "task=denoise", f"task.image={tmp_path}") == Exit.DONE
    folder = colour / "evaluation/edits/denoise"
    assert {path.name for path in folder.iterdir()} == {"a.png", "b.png"}
    save(tmp_path / "b.png", noise(8, 8))
    assert evaluate(colour, "task=denoise", f"task.image={tmp_path}", "task.sigma=0.2") == Exit.DONE
    assert {path.name for path in folder.iterdir()} == {"a.png.png", "b.jpg.png", "b.png.png"}
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.jpg").unlink()
    assert evaluate(colour, "task=denoise", f"task.image={tmp_path}") == Exit.DONE
    assert [path.name for path in folder.iterdir()] == ["a.png"]  # no results of an earlier command


def test_a_level_at_which_the_model_ends_is_refused_by_its_key(colour, capsys):
    assert evaluate(colour, "task=denoise", "n=2", "task.sigma=1e-30") == Exit.BAD_INPUT
    assert "task.sigma=1e-30 is not allowed: the model ends at this level" in capsys.readouterr().err


def test_the_ends_of_a_row_are_samples(grey):
    assert evaluate(grey, "task=interpolate", "n=3", "task.ends=[[5,12]]", "seed=7") == Exit.DONE
    generator = load(grey)
    first = generator.sample(1, steps=1, seed=7, first=5)
    last = generator.sample(1, steps=1, seed=7, first=12, labels=[5])
    for k, expected in ((0, first), (2, last)):
        found = torch.from_numpy(pixels(grey / f"evaluation/edits/interpolate/5_12_{k:02d}.png").copy())
        assert ((found / 127.5 - 1) - expected[0, 0]).abs().max() < 1.01 / 127.5


WRONG = [  # what is on the command line, the file that it names, part of the error
    ("task.image={file} task.label=1", b"not an image", "task.image={file} is not allowed: this file cannot be used: "),
    ("task.image={file} task.label=1", "cut off", "task.image={file} is not allowed: this file cannot be used: "),
    (
        "task.image={file} task.label=1",
        "a pipe",
        "task.image={file} is not allowed: this file cannot be used: is no",
    ),
    (
        "task.image={folder} task.label=1",
        None,
        "task.image={folder} is not allowed. Allowed: a folder with images in it",
    ),
    ("task.image={file}", "good", "have no labels. Allowed: a class from 0 to 9"),
    ("task.label=10", None, "task.label=10 is not allowed. Allowed: a class from 0 to 9, or null"),
    ("task.label=three", None, "task.label=three is not allowed. Allowed: a class from 0 to 9, or null"),
    ("task.mask={file}", b"not an image", "task.mask={file} is not allowed: this file cannot be used: "),
    ("task.mask={file}", b"not an image", "the content is no image"),
    ("task.mask={folder}", None, "this file cannot be used: Is a directory. Allowed: an image"),
    ("task.mask={file}", "good", "Allowed: an image of 8x8 pixels, "),
    ("task.mask={file}", "black", "black, so that nothing is painted"),
    ("task.mask={file}", "white", "white, so that nothing is preserved"),
    ("steps=[2]", None, "steps=[2] is not allowed. Allowed: one number for a model that takes several steps"),
    (
        "task.levels=[0.001]",
        None,
        "task.levels=[0.001] is not allowed: the model ends at this level. Allowed: levels above 0.002",
    ),
    ("task.levels=[1,0.002]", None, "levels above 0.002"),
    ("seeds=0-9", None, "seeds=0-9 is not allowed: task=inpaint does not use it. Allowed: null"),
    ("repeats=2", None, "repeats=2 is not allowed: task=inpaint does not use it. Allowed: 1"),
    ("devices=2", None, "devices=2 is not allowed: task=inpaint does not use it. Allowed: 1"),
    ("compile=true", None, "compile=true is not allowed: task=inpaint does not use it. Allowed: auto"),
    ("sigmas=[80,1]", None, "sigmas=[80,1] is not allowed: task=inpaint does not use it. Allowed: null"),
]


@pytest.mark.parametrize(("line", "content", "message"), WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_bad_input_is_told_before_the_model_runs(line, content, message, grey, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "consistency_models.sampling.generator.Generator.edit", lambda *a, **k: pytest.fail("the model ran")
    )
    file = tmp_path / "file.png"
    made = {"good": noise(9, 9), "black": np.zeros((8, 8)), "white": np.full((8, 8), 255), "cut off": noise(9, 9)}
    if content == "a pipe":
        os.mkfifo(file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save(file, made[content])
    if content == "cut off":
        file.write_bytes(file.read_bytes()[:60])
    line, message = (text.format(file=file, folder=tmp_path) for text in (line, message))
    assert evaluate(grey, "task=inpaint", *line.split()) == Exit.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_patch_that_does_not_divide_is_refused(grey, capsys):
    assert evaluate(grey, "task=superres", "task.patch=3") == Exit.BAD_INPUT
    assert "error: task.patch=3 is not allowed: " in capsys.readouterr().err


def test_classes_for_a_model_without_are_refused(colour, capsys):
    assert evaluate(colour, "task=inpaint", "task.label=1") == Exit.BAD_INPUT
    assert "task.label=1 is not allowed: the model is unconditional. Allowed: null" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_points_are_no_images(task, points, capsys):
    assert evaluate(points, f"task={task}") == Exit.BAD_INPUT
    assert re.search(f"error: task={task} is not allowed: .* makes points.* Allowed: evaluate", capsys.readouterr().err)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("points"), *POINTS)


REFUSED = [
    ("task=inpant", "task", "Did you mean task=inpaint?"),
    ("task=inpaint task.patch=2", "task.patch", "keys of task: image, label, levels, mask"),
    ("task=inpaint task.maks=x", "task.maks", "Did you mean task.mask=x?"),
    ("task=inpaint task.image=/nowhere.png", "task.image", "a path that exists"),
    ("task=inpaint task.mask=/nowhere.png", "task.mask", "a path that exists"),
    ("task=inpaint task.label=[3]", "task.label", "a whole number >= 0, or text"),
    ("task=inpaint task.label=-1", "task.label", "a whole number >= 0"),
    ("task=inpaint task.levels=1", "task.levels", "a whole number >= 2"),
    ("task=inpaint task.levels=[]", "task.levels", "a list of descending levels"),
    ("task=inpaint task.levels=[1,80]", "task.levels", "a list of descending levels"),
    ("task=superres task.patch=0", "task.patch", "a whole number >= 1"),
    ("task=denoise task.noise=-1", "task.noise", "a number > 0 and <= 1000000"),
    ("task=denoise task.sigma=0", "task.sigma", "a number > 0 and <= 1000000"),
    ("task=interpolate task.ends=[0,1]", "task.ends", "a list of 2"),
    ("task=interpolate task.ends=[[1,1]]", "task.ends", "different"),
]


@pytest.mark.parametrize(("line", "key", "told"), REFUSED, ids=[case[0] for case in REFUSED])
def test_wrong_settings_are_refused_before_anything_is_loaded(line, key, told, tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(CONF.parent))
    with pytest.raises(ConfigError) as caught:
        check("eval", Composer("eval", CONF), DummyFiles(tmp_path).split(f"run={{run}} {line}"))
    lines = str(caught.value).split("\nerror: ")
    assert [one for one in lines if one.startswith(f"{key}=") and told in one], lines
