"""task=sample: the layouts of others, and the same bytes whatever happened on the way."""

import errno
import functools
import json
import zipfile
from itertools import count

import jobs
import numpy as np
import pytest
import torch
from evals import DIGITS, POINTS, evaluate, trained

from consistency_models.app.tasks import archives
from consistency_models.data import image_folder
from consistency_models.errors import Exit
from consistency_models.evaluation.features import to_bytes
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import load

N = 270  # more than a block


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("digits"), *DIGITS)


def sample(run, out, *overrides):
    return evaluate(run, "task=sample", f"task.out={out}", "steps=[2]", *overrides)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_bytes_depend_neither_on_batches_nor_on_an_interruption(digits, tmp_path):
    assert sample(digits, tmp_path / "a", f"n={N}") == Exit.DONE
    first = files(tmp_path / "a")
    assert len(first) == N + 2  # dataset.json, and samples.json with the settings
    for k in (0, 3, 256, 269):
        (tmp_path / f"a/{k // 1000:05d}/img{k:08d}.png").unlink()
    assert sample(digits, tmp_path / "a", f"n={N}", "batch_size=7") == Exit.DONE
    assert files(tmp_path / "a") == first
    assert sample(digits, tmp_path / "b", f"n={N}", "batch_size=7", "devices=2") == Exit.DONE
    assert files(tmp_path / "b") == first


def test_half_precision_in_all_processes(digits, tmp_path, capsys):
    half = ("n=20", "precision=bf16-mixed")
    for name, options in {"a": ("n=20",), "b": half, "c": (*half, "devices=2")}.items():
        assert sample(digits, tmp_path / name, *options) == Exit.DONE
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert b == c
    assert a.keys() == b.keys()
    assert a != b
    assert sample(digits, tmp_path / "a", *half) == Exit.BAD_INPUT
    assert "different here: autocast" in capsys.readouterr().err


def test_compiled_calls_are_those_of_whole_blocks(digits, tmp_path, monkeypatch):
    """compile=true changes images by rounding only; the last block is smaller and runs eagerly."""
    sizes, whole = [], functools.partial(torch.compile, backend=lambda graph, inputs: graph.forward)

    def compile_and_count(model, **options):
        compiled = whole(model, **options)
        return lambda x, *levels, **given: sizes.append(len(x)) or compiled(x, *levels, **given)

    monkeypatch.setattr(torch, "compile", compile_and_count)
    images = {}
    for value in ("false", "true"):
        assert sample(digits, tmp_path / f"{value}.npz", f"n={N}", f"compile={value}", "task.format=npz") == Exit.DONE
        images[value] = np.load(tmp_path / f"{value}.npz")["arr_0"].astype(int)
        assert set(sizes) == ({256} if value == "true" else set())
    assert np.abs(images["true"] - images["false"]).max() <= 1


def test_an_interrupted_command_goes_on_in_another_process(digits, tmp_path):
    """With a sampler that has an object, which lies elsewhere in the memory there."""
    assert sample(digits, tmp_path / "a", "sampler=heun", "n=4") == Exit.DONE
    whole = files(tmp_path / "a")
    (tmp_path / "a/00000/img00000003.png").unlink()
    command = ("eval.py", f"run={digits}", "task=sample", f"task.out={tmp_path / 'a'}", "steps=[2]", "device=cpu")
    code, output = jobs.command(tmp_path, *command, "sampler=heun", "n=4")
    assert code == Exit.DONE, output
    assert files(tmp_path / "a") == whole


def test_an_error_of_writing_and_a_stop_leave_complete_files(digits, tmp_path, monkeypatch, capsys):
    assert sample(digits, tmp_path / "a", f"n={N}") == Exit.DONE
    whole = files(tmp_path / "a")
    save, saved = archives.Image.Image.save, count(1)

    def full(image, file, **options):
        save(image, file, **options)
        if next(saved) == 20:
            raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(archives.Image.Image, "save", full)
        assert sample(digits, tmp_path / "b", f"n={N}") == Exit.STORAGE
    assert "error: the disk is full" in capsys.readouterr().err

    def stopped(generator, *arguments):
        yield next(batches(generator, *arguments))
        raise KeyboardInterrupt

    batches = Generator.batches
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "batches", stopped)
        with pytest.raises(KeyboardInterrupt):
            sample(digits, tmp_path / "c", f"n={N}")
    for folder in ("b", "c"):
        assert files(tmp_path / folder).items() < whole.items()
    assert len(files(tmp_path / "b")) > 20 - archives.THREADS


def test_folders_zips_and_arrays_hold_the_same(digits, tmp_path):
    generator = load(digits)
    expected = to_bytes(generator.sample(30, steps=2))
    for name, arguments in (("f", ()), ("z", ("task.format=zip",)), ("a", ("task.format=npz",))):
        assert sample(digits, tmp_path / name, "n=30", *arguments) == Exit.DONE
    for name in ("f", "z.zip"):
        found = image_folder(tmp_path / name, channels=1)
        assert torch.equal(found.images, expected)
        assert found.labels.tolist() == [k % 10 for k in range(30)]
    arrays = np.load(tmp_path / "a.npz")
    assert np.array_equal(arrays["arr_0"], expected.permute(0, 2, 3, 1).numpy())
    assert arrays["arr_1"].tolist() == [k % 10 for k in range(30)]
    with zipfile.ZipFile(tmp_path / "z.zip") as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
    assert labels[:2] == [["00000/img00000000.png", 0], ["00000/img00000001.png", 1]]
    assert not list(tmp_path.glob("*.part"))


def test_paths_in_the_home_folder(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(digits.parent))
    monkeypatch.chdir(tmp_path)
    assert sample(f"'~/{digits.name}'", f"'~/{digits.name}/out'", "n=2") == Exit.DONE
    assert (digits / "out/samples.json").is_file()
    assert not (tmp_path / "~").exists()


def test_class_by_class(digits, tmp_path):
    assert sample(digits, tmp_path / "f", "n=12", "task.by_class=true", "task.classes=[3,5]") == Exit.DONE
    assert len(list((tmp_path / "f/00003").glob("*.png"))) == len(list((tmp_path / "f/00005").glob("*.png"))) == 6
    assert sample(digits, tmp_path / "a", "n=12", "task.by_class=true", "task.format=npz") == Exit.DONE
    assert np.load(tmp_path / "a.npz")["arr_1"].tolist() == sorted(k % 10 for k in range(12))


def test_no_half_written_archive_has_its_name(digits, tmp_path, monkeypatch):
    def full(file, *arrays):
        file.write(b"PK")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(archives.np, "savez", full)
        assert sample(digits, tmp_path / "a", "n=20", "task.format=npz") == Exit.STORAGE
    assert not (tmp_path / "a.npz").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a.npz.part").rglob("*.png")}
    assert len(before) == 20
    assert sample(digits, tmp_path / "a", "n=20", "task.format=npz") == Exit.DONE
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("seed=1",), "task.out="),
        (("weights=model",), "different here: weights"),
        (("task.classes=[10]",), "Allowed: a class from 0 to 9"),
        (("weights=0.5",), "weights=0.5 is not allowed: "),
    ],
)
def test_refused(digits, tmp_path, capsys, arguments, told):
    assert sample(digits, tmp_path / "a", "n=3") == Exit.DONE
    before = files(tmp_path / "a")
    capsys.readouterr()
    assert sample(digits, tmp_path / "a", "n=3", *arguments) == Exit.BAD_INPUT
    assert told in capsys.readouterr().err
    assert files(tmp_path / "a") == before


def test_points_are_no_images(tmp_path, capsys):
    assert sample(trained(tmp_path / "run", *POINTS), tmp_path / "a") == Exit.BAD_INPUT
    assert "a model of images" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_without_a_step_count_the_first_of_the_run_is_taken(digits, tmp_path):
    assert evaluate(digits, "task=sample", f"task.out={tmp_path / 'a'}", "n=2") == Exit.DONE
    assert json.loads((tmp_path / "a/samples.json").read_text())["sigmas"] == "(80.0,)"
