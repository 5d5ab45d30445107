"""Which folders are taken for what: wrappings, sets for training and testing, classes, litter."""

import json
import shutil
import zipfile

import pytest
import torch
from data.conftest import encoded, write

from consistency_models.data import DataError, image_folder


def zipped(folder):
    return shutil.make_archive(str(folder), "zip", folder)


def images_of(tmp_path, pixels, names, **others):
    """A folder of these files: images, other files from `others`, and empty folders."""
    files = {name: name if name.endswith("/") else pixels(k) for k, name in enumerate(names)}
    return write(tmp_path / "root", files | {name.replace("__", "/"): content for name, content in others.items()})


KINDS = pytest.mark.parametrize("kind", [str, zipped], ids=["folder", "zip"])


# Sets


@KINDS
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("training", "validation"),
        ("Train", "Test"),
        ("TRAIN", "Val"),
        ("Training", "Testing"),
        ("train_images", "test_images"),
        ("train2017", "val2017"),
        ("trainset", "dev-set"),
        ("Training Set", "hold-out"),
    ],
)
def test_sets_are_no_classes(tmp_path, pixels, caplog, kind, train, test):
    caplog.set_level("INFO")
    root = images_of(tmp_path, pixels, [f"{train}/a/0.png", f"{train}/b/1.png", f"{test}/a/2.png", f"{test}/b/3.png"])
    images = image_folder(kind(root))
    assert (images.n, images.test.n, images.class_names) == (2, 2, ("a", "b"))
    assert images.class_names == images.test.class_names
    assert images.labels.tolist() == images.test.labels.tolist() == [0, 1]
    assert f"{train} is the training set, {test} the test set" in caplog.text


def test_test_is_preferred_to_val_and_what_is_not_used_is_named(tmp_path, pixels, caplog):
    caplog.set_level("INFO")
    names = ["train/a/0.png", "val/a/1.png", "val/a/2.png", "test/a/3.png", "extra/x/4.png"]
    images = image_folder(images_of(tmp_path, pixels, names))
    assert (images.n, images.test.n) == (1, 1)
    assert "train is the training set, test the test set; not used: extra, val" in caplog.text


def test_a_test_set_without_labels_gives_way_to_one_with(tmp_path, pixels):
    names = ["train/a/0.png", "train/b/1.png", "val/a/2.png", "test/3.png", "test/4.png"]
    images = image_folder(images_of(tmp_path, pixels, names))
    assert images.test.labels.tolist() == [0]
    shutil.rmtree(tmp_path / "root" / "val")
    assert image_folder(tmp_path / "root").test.labels is None


def test_sets_without_classes(tmp_path, pixels):
    images = image_folder(images_of(tmp_path, pixels, ["train/0.png", "train/1.png", "val/2.png"]))
    assert (images.n, images.num_classes, images.test.n) == (2, 0, 1)


def test_train_alone_is_all_there_is(tmp_path, pixels, caplog):
    caplog.set_level("INFO")
    images = image_folder(images_of(tmp_path, pixels, ["train/a/0.png", "train/b/1.png"], annotations__x_json=b"{}"))
    assert (images.class_names, images.test) == (("a", "b"), None)
    assert "train is taken as data.root" in caplog.text


def test_an_empty_test_set_is_none(tmp_path, pixels):
    images = image_folder(images_of(tmp_path, pixels, ["train/a/0.png", "train/b/1.png", "test/"]))
    assert (images.class_names, images.test) == (("a", "b"), None)


def test_train_beside_cars_is_a_class(tmp_path, pixels):
    images = image_folder(images_of(tmp_path, pixels, ["car/0.png", "train/1.png"]))
    assert (images.class_names, images.test) == (("car", "train"), None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val/0.png", "test/1.png"], "holds test, val and no folder train"),
        (["train/0.png", "training/1.png", "val/2.png"], "holds train, training; one training set is allowed"),
        (
            ["a/train/0.png", "a/val/1.png", "b/train/2.png", "b/val/3.png"],
            "a holds train and val; sets",
        ),
    ],
)
def test_sets_that_are_unclear_are_refused(tmp_path, pixels, names, message):
    with pytest.raises(DataError, match=message):
        image_folder(images_of(tmp_path, pixels, names))


def test_one_dataset_json_for_two_sets_is_refused(tmp_path, pixels):
    root = images_of(tmp_path, pixels, ["train/0.png", "test/1.png"])
    (root / "dataset.json").write_text(json.dumps({"labels": [["train/0.png", 0], ["test/1.png", 0]]}))
    with pytest.raises(DataError, match=r"dataset.json lies beside train and test; each set needs one of its own"):
        image_folder(root)


# Wrappings


@KINDS
@pytest.mark.parametrize("wrapping", ["photos", "a/b/c", "train", "data set"])
def test_a_lone_folder_is_stepped_into(tmp_path, pixels, caplog, kind, wrapping):
    caplog.set_level("INFO")
    names = ["cat/0.png", "dog/1.png"]
    plain = image_folder(images_of(tmp_path / "plain", pixels, names))
    root = images_of(tmp_path, pixels, [f"{wrapping}/{name}" for name in names], readme_txt=b"-")
    images = image_folder(kind(root))
    assert (images.class_names, images.digest) == (("cat", "dog"), plain.digest)
    assert f"{wrapping.split('/')[0]} is taken as data.root" in caplog.text


def test_a_wrapping_hides_neither_sets_nor_dataset_json(tmp_path, pixels):
    images = image_folder(images_of(tmp_path / "sets", pixels, ["x/train/a/0.png", "x/val/a/1.png"]))
    assert (images.class_names, images.test.n) == (("a",), 1)
    root = images_of(tmp_path, pixels, ["x/00000/0.png", "x/00000/1.png"])
    (root / "x" / "dataset.json").write_text(json.dumps({"labels": [["00000/0.png", 1], ["00000/1.png", 0]]}))
    assert image_folder(root).labels.tolist() == [1, 0]
    assert image_folder(zipped(root)).labels.tolist() == [1, 0]


# Names


@KINDS
def test_names_of_digits_are_numbers(tmp_path, pixels, kind):
    root = images_of(tmp_path, pixels, [f"{k}/{k}.png" for k in range(12)])
    images = image_folder(kind(root))
    assert images.class_names == tuple(map(str, range(12)))
    write(root, {"x/0.png": pixels(0)})
    assert image_folder(root).class_names == ("0", "1", "10", "11", *"23456789x")


def test_backslashes_of_windows_are_slashes(tmp_path, pixels):
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k, name in enumerate(["photos\\cat\\0.png", "photos\\dog\\1.png", ".\\photos\\dog\\2.png"]):
            archive.writestr(name, encoded(pixels(k)))
        archive.writestr("photos\\empty\\", b"")
    with pytest.raises(DataError, match="photos/empty holds no image"):
        image_folder(path)
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        archive.writestr("00000\\0.png", encoded(pixels(0)))
        archive.writestr("00000/1.png", encoded(pixels(1)))
        archive.writestr("dataset.json", json.dumps({"labels": [["00000\\0.png", 3], ["00000\\1.png", 1]]}))
    assert image_folder(tmp_path / "edm.zip").labels.tolist() == [3, 1]


def test_a_zip_of_windows_has_classes(tmp_path, pixels):
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k, name in enumerate(["cat\\0.png", "dog\\1.png"]):
            info = zipfile.ZipInfo("x")
            info.filename = name  # the constructor of some systems changes it
            archive.writestr(info, encoded(pixels(k)))
    images = image_folder(path)
    assert (images.class_names, images.labels.tolist()) == (("cat", "dog"), [0, 1])


# What is passed over


@KINDS
def test_litter_is_no_class(tmp_path, pixels, kind):
    names = ["cat/0.png", "dog/1.png", "cat/@eaDir/0.png", "@eaDir/2.png", "__MACOSX/cat/._0.png", ".thumbs/3.png"]
    names += ["#recycle/4.png", "lost+found/", "cat/.5.png"]
    images = image_folder(kind(images_of(tmp_path, pixels, names)))
    assert (images.n, images.class_names) == (2, ("cat", "dog"))


@KINDS
def test_files_that_are_no_images_are_counted_and_named(tmp_path, pixels, caplog, kind):
    caplog.set_level("INFO")
    root = images_of(tmp_path, pixels, ["0.png"], **{"a.heic": b"", "b.heic": b"", "c.txt": b""})
    image_folder(kind(root))
    assert "3 files are passed over (2 .heic, 1 .txt), first a.heic" in caplog.text


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".apng", ".dib", ".pnm", ".tif"])
def test_whatever_pillow_reads_is_taken(tmp_path, pixels, suffix):
    kinds = {".apng": "PNG", ".dib": "DIB", ".pnm": "PPM", ".tif": "TIFF"}
    root = write(tmp_path / "root", {f"0{suffix}": encoded(pixels(0), kinds.get(suffix, "JPEG"))})
    assert image_folder(root).n == 1


def test_avif_is_taken_where_pillow_has_it(tmp_path, pixels):
    features = pytest.importorskip("PIL.features")
    if "avif" not in features.modules or not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    root = write(tmp_path / "root", {"0.avif": encoded(pixels(0), "AVIF")})
    assert torch.is_tensor(image_folder(root).images)
