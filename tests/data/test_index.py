"""The index of a folder or zip: a valid one spares the walk, and every change in the sample of files is noticed."""

import json
import os
import shutil
import time

import pytest
import torch
from data.conftest import write

from consistency_models.data import DataError, image_folder, index, layout
from consistency_models.data.decoding import SUFFIXES
from consistency_models.data.files import Files


def aged(root):
    """Set the times of all folders to an hour ago: a folder that has just changed is not indexed."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 3600,) * 2)
    return root


@pytest.fixture
def split(tmp_path, pixels):
    files = {f"train/{c}/{k}.png": pixels(k) for k, c in enumerate(["cat", "cat", "dog"])}
    files |= {"val/dog/é.png": pixels(4), "val/notes.txt": b"-"}
    return aged(write(tmp_path / "split", files))


@pytest.fixture
def walks(monkeypatch):
    """The roots that were walked."""
    roots, real = [], Files.open
    monkeypatch.setattr(Files, "open", lambda root: roots.append(root) or real(root))
    return roots


def same(first, second):
    assert torch.equal(first.images, second.images)
    assert first.labels is second.labels is None or torch.equal(first.labels, second.labels)
    assert (first.num_classes, first.class_names) == (second.num_classes, second.class_names)


@pytest.mark.parametrize("storage", ["decoded", "encoded"])
@pytest.mark.parametrize("kind", [str, lambda path: shutil.make_archive(str(path), "zip", path)], ids=["folder", "zip"])
def test_a_start_with_an_index_lists_nothing(split, tmp_path, walks, caplog, kind, storage):
    caplog.set_level("INFO")
    root, options = kind(split), {"cache_dir": tmp_path / "cache", "storage": storage}
    os.utime(root, (time.time() - 3600,) * 2)
    first = image_folder(root, **options)
    again = image_folder(root, **options)
    assert len(walks) == 1
    assert f"{root}: 3 + 1 images, as listed before" in caplog.text
    assert f"{root}/val is the test set" in caplog.text
    if storage == "encoded":
        assert torch.equal(again.images[:3], first.images[:3])
        assert (again.digest, again.test.digest) == (first.digest, first.test.digest)
        assert torch.equal(again.test.images[:1], first.test.images[:1])
    else:
        same(first, again)
        same(first.test, again.test)


CHANGES = {
    "a new file": lambda root, pixels: write(root, {"train/cat/9.png": pixels(9)}),
    "a file less": lambda root, pixels: (root / "train/cat/0.png").unlink(),
    "another name": lambda root, pixels: (root / "train/cat/0.png").rename(root / "train/cat/5.png"),
    "replaced": lambda root, pixels: shutil.move(write(root, {"x": pixels(9)}) / "x", root / "train/cat/0.png"),
    "overwritten": lambda root, pixels: write(root, {"train/cat/0.png": pixels(9)}),
    "another time": lambda root, pixels: os.utime(root / "train/cat/0.png", (1e9, 1e9)),
    "a class more": lambda root, pixels: write(root, {"train/bird/0.png": pixels(9)}),
    "labels": lambda root, pixels: write(root, {"train/dataset.json": b'{"labels": null}'}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(split, tmp_path, pixels, walks, change):
    image_folder(split, cache_dir=tmp_path / "cache")
    CHANGES[change](split, pixels)
    same(image_folder(split, cache_dir=tmp_path / "cache"), image_folder(split))
    assert walks == [split] * 3


def test_a_change_of_the_labels_is_noticed_in_any_sample(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(index, "SAMPLE", 1)
    root = write(tmp_path / "edm", {f"{k}.png": pixels(k) for k in range(3)})
    for labels in ([0, 1, 1], [1, 0, 0]):
        (root / "dataset.json").write_text(json.dumps({"labels": [[f"{k}.png", c] for k, c in enumerate(labels)]}))
        assert image_folder(aged(root), cache_dir=tmp_path / "cache").labels.tolist() == labels
    assert len(list((tmp_path / "cache").glob("*.index.npz"))) == 1


def test_files_of_a_format_that_pillow_reads_since_are_found(split, tmp_path, monkeypatch):
    write(split, {"train/dog/9.webp": b"-"})
    with monkeypatch.context() as patch:
        for module in (index, layout):
            patch.setattr(module, "SUFFIXES", tuple(suffix for suffix in SUFFIXES if suffix != ".webp"))
        assert len(index.listed(aged(split), tmp_path / "cache")[0]) == 3
    assert len(index.listed(split, tmp_path / "cache")[0]) == 4


def test_a_folder_that_has_just_changed_is_not_indexed(folder, tmp_path, walks):
    for _ in range(2):
        os.utime(folder)
        image_folder(folder, cache_dir=tmp_path / "cache")
    assert len(walks) == 2


@pytest.mark.parametrize("damage", ["empty", "cut off", "array"])
def test_a_damaged_index_is_made_again(split, tmp_path, walks, damage):
    first = image_folder(split, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.index.npz")
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut off": content[:-9], "array": content.replace(b'"times"', b'"tames"')}[damage])
    for _ in range(2):
        same(first, image_folder(split, cache_dir=tmp_path / "cache"))
    assert len(walks) == 2


def test_a_missing_folder_is_named_in_spite_of_its_index(split, tmp_path):
    image_folder(split, cache_dir=tmp_path / "cache")
    shutil.rmtree(split)
    with pytest.raises(DataError, match=r"split: found nothing, need a folder, zip"):
        image_folder(split, cache_dir=tmp_path / "cache")


def test_names_from_windows_are_listed_each_time(tmp_path, pixels, walks):
    root = aged(write(tmp_path / "windows", {"cat\\0.png": pixels(0), "dog\\1.png": pixels(1)}))
    for _ in range(2):
        assert image_folder(root, cache_dir=tmp_path / "cache").class_names == ("cat", "dog")
    assert len(walks) == 2
