"""Tars, LMDBs and parquet files: recognised, read by index as image files are, and refused when they are damaged."""

import contextlib
import io
import json
import pickle
import random
import tarfile

import numpy as np
import pytest
from data.conftest import encoded, write
from data.test_layout import zipped
from security.formats import scrambled

from consistency_models.data import DataError, image_folder, known_set
from consistency_models.data.containers import encoded_sets
from consistency_models.data.lmdb_file import lmdb_sets
from consistency_models.data.parquet import parquet_sets
from consistency_models.data.ranges import Places
from consistency_models.data.tars import tar_sets

arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
lmdb = pytest.importorskip("lmdb")


def tar(path, files, **options):
    """A tar of contents by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shard(numbers, pixels):
    """Contents of a shard of WebDataset: images of these numbers, of class k % 3."""
    files = {}
    for k in numbers:
        files |= {f"./{k:05}.png": encoded(pixels(k)), f"./{k:05}.cls": b"%d" % (k % 3), f"./{k:05}.json": b"{}"}
    return files


def database(folder, values):
    """An LMDB of values by key, written by the library."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


def table(path, images, labels=None, names=None, nested=True, **options):
    """A parquet file as the library datasets writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [{"bytes": image, "path": "x.png"} for image in images] if nested else images}
    columns |= {} if labels is None else {"label": labels}
    content = arrow.table(columns)
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        content = content.replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(content, path, row_group_size=2, **options)
    return path


def same(images, numbers, pixels):
    return np.array_equal(images.images.numpy(), np.stack([pixels(k).transpose(2, 0, 1) for k in numbers]))


# Tars


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_of_webdataset(tmp_path, pixels, format):
    for part in (range(3), range(3, 5)):
        tar(tmp_path / f"set/shard-{part[0]:06}.tar", shard(part, pixels), format=format)
    images = image_folder(tmp_path / "set", cache_dir=tmp_path / "cache")
    assert same(images, range(5), pixels)
    assert (images.labels.tolist(), images.num_classes, images.test) == ([0, 1, 2, 0, 1], 3, None)


def test_shards_of_two_sets(tmp_path, pixels):
    tar(tmp_path / "photos-train-0.tar", shard(range(4), pixels))
    tar(tmp_path / "photos-val-0.tar", shard(range(2), pixels))
    images = image_folder(tmp_path)
    assert (images.n, images.test.n, images.test.labels.tolist()) == (4, 2, [0, 1])


def test_a_tar_of_folders(tmp_path, pixels):
    names = ["train/cat/0.png", "train/dog/1.png", "val/dog/2.png"]
    path = tar(tmp_path / "a.tar", {f"photos/{name}": encoded(pixels(k)) for k, name in enumerate(names)})
    images = image_folder(path)
    assert same(images, [0, 1], pixels)
    assert (images.class_names, images.labels.tolist(), images.test.labels.tolist()) == (("cat", "dog"), [0, 1], [1])


def test_the_tar_of_tars_of_imagenet(tmp_path, pixels):
    inner = {}
    for k, name in enumerate(["n02", "n01"]):
        content = {f"{name}_{i}.JPEG": encoded(pixels(2 * k + i)) for i in range(2)}
        inner[f"{name}.tar"] = tar(tmp_path / f"inner/{name}.tar", content).read_bytes()
    path = tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    images = known_set(path, 8, "imagenet", images=[4], classes=2, prepare="fetch it")
    assert same(images, [2, 3, 0, 1], pixels)
    assert (images.class_names, images.labels.tolist()) == (("n01", "n02"), [0, 0, 1, 1])


def test_the_list_of_a_tar_is_stored(tmp_path, pixels, monkeypatch):
    path, cache = tar(tmp_path / "a.tar", shard(range(3), pixels)), tmp_path / "cache"
    first = image_folder(path, cache_dir=cache).digest
    monkeypatch.setattr("consistency_models.data.tars._members", None)  # reading the tar again would fail
    assert image_folder(path, cache_dir=cache).digest == first
    (stored,) = cache.glob("*.ranges.npz")
    stored.write_bytes(stored.read_bytes()[:-30])
    monkeypatch.undo()
    assert image_folder(path, cache_dir=cache).digest == first
    tar(path, shard(range(4), pixels))
    assert image_folder(path, cache_dir=cache).n == 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"0.cls": b"-1"}, "no class from 0 on"),
        ({"0.cls": b"1e3"}, "no class from 0 on"),
        ({"0.cls": b"9" * 30}, "no class from 0 on"),
        ({"1.png": b"", "0.cls": b"1"}, r"1\.png has no class file 1\.cls"),
        ({"a.txt": b"0"}, "holds no image"),
    ],
)
def test_a_bad_shard(tmp_path, pixels, files, said):
    images = {"0.png": encoded(pixels(0))} if "a.txt" not in files else {}
    with pytest.raises(DataError, match=said):
        image_folder(tar(tmp_path / "a.tar", images | files))


def test_two_shards_with_the_same_name(tmp_path, pixels):
    for part in "ab":
        tar(tmp_path / f"{part}.tar", shard([0], pixels))
    with pytest.raises(DataError, match=r"a\.tar and .*b\.tar both hold 00000.png"):
        image_folder(tmp_path)


def test_members_that_are_no_files_are_left_out(tmp_path, pixels):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind, name in [(tarfile.SYMTYPE, "1.png"), (tarfile.LNKTYPE, "2.png"), (tarfile.FIFOTYPE, "3.png")]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        content = encoded(pixels(0))
        for name in ("0.png", "../../4.png", "a/../5.png", ".hidden/6.png", "__MACOSX/7.png"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    train, _ = encoded_sets(path, None)
    assert list(train.names) == ["0.png"]


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(DataError, match="compressed tars have to be unpacked"):
        image_folder(tmp_path / "a.tar")


# LMDB


@pytest.mark.parametrize("count", [1, 3, 400])
def test_an_lmdb_is_what_the_library_reads(tmp_path, count):
    """Small values in leaves, large values in pages of their own, one level and more."""
    rng = random.Random(count)
    values = {f"{rng.getrandbits(160):040x}".encode(): rng.randbytes(rng.choice([1, 900, 5000])) for _ in range(count)}
    folder = database(tmp_path / "a", values)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key in [*values][::3][1:]:  # a second transaction, which leaves free pages
            transaction.delete(key)
    with lmdb.open(str(folder), readonly=True) as environment, environment.begin() as transaction:
        expected = [(key.decode(), bytes(value)) for key, value in transaction.cursor()]
    found, test = lmdb_sets(folder, None)
    assert test is None
    assert [(name, found.read(i)) for i, name in enumerate(found.names)] == expected


def test_lsun(tmp_path, pixels):
    for part, count in (("train", 3), ("val", 2)):
        values = {f"{k:040x}".encode(): encoded(pixels(k), "WEBP") for k in range(count)}
        database(tmp_path / f"bedroom_{part}_lmdb", values)
    images = image_folder(tmp_path, cache_dir=tmp_path / "cache")
    assert (images.n, images.labels, images.test.n) == (3, None, 2)
    assert image_folder(tmp_path / "bedroom_train_lmdb", cache_dir=tmp_path / "cache").digest == images.digest


def test_an_lmdb_with_several_values_a_key(tmp_path):
    with lmdb.open(str(tmp_path / "a"), max_dbs=1) as environment:
        name = environment.open_db(b"images")
        with environment.begin(write=True, db=name) as transaction:
            transaction.put(b"0", b"x")
    with pytest.raises(DataError, match="several values a key"):
        image_folder(tmp_path / "a")


def test_an_empty_lmdb(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        image_folder(database(tmp_path / "a", {}))


def test_two_lmdbs_for_one_set(tmp_path):
    for name in ("bedroom", "cat"):
        database(tmp_path / name, {b"0": b"x"})
    with pytest.raises(DataError, match="bedroom, cat; one training set"):
        image_folder(tmp_path)


# Parquet


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_files_of_the_hub(tmp_path, pixels, nested):
    contents = [encoded(pixels(k)) for k in range(8)]
    for part, rows in enumerate([range(3), range(3, 5)]):
        path = tmp_path / f"data/train-{part:05}-of-00002-0a1b.parquet"
        table(path, [contents[k] for k in rows], [k % 2 for k in rows], ["cat", "dog"], nested)
    table(tmp_path / "data/validation-00000-of-00001.parquet", contents[5:7], [1, 0], ["cat", "dog"], nested)
    table(tmp_path / "data/test-00000-of-00001.parquet", contents[7:], [-1], ["cat", "dog"], nested)
    images = image_folder(tmp_path)
    assert same(images, range(5), pixels)
    assert (images.labels.tolist(), images.class_names) == ([0, 1, 0, 1, 0], ("cat", "dog"))
    assert (images.test.n, images.test.labels) == (1, None)


def test_images_of_parquet_files_in_any_order(tmp_path, pixels):
    contents = [encoded(pixels(k)) for k in range(5)]
    for part, rows in enumerate([[0, 1, 2], [3, 4]]):
        table(tmp_path / f"{part}.parquet", [contents[k] for k in rows])
    encoded_images = pickle.loads(pickle.dumps(encoded_sets(tmp_path, None)[0]))
    assert [encoded_images.read(i) for i in (4, 0, 3, 2, 1)] == [contents[i] for i in (4, 0, 3, 2, 1)]
    assert list(encoded_images.names) == ["0.parquet:0", "0.parquet:1", "0.parquet:2", "1.parquet:0", "1.parquet:1"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a"]}, "columns text and none of image"),
        ({"image": [{"bytes": None, "path": "0.png"}]}, "images beside the parquet file are not read"),
        ({"image": [b"x"], "label": [-2]}, "classes from 0 on"),
        ({"image": [b"x"], "label": [0.5]}, "labels must be whole numbers"),
        ({"image": [b"x"], "label": [None]}, "labels must be whole numbers"),
        ({"image": arrow.array([], arrow.binary())}, "holds no image"),
    ],
)
def test_other_columns(tmp_path, columns, said):
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said):
        image_folder(tmp_path)


def test_an_image_that_is_repeated_beyond_the_memory(tmp_path, monkeypatch):
    """A dictionary stores the image once; the limit counts what is unpacked."""
    table(tmp_path / "a.parquet", [bytes(10_000)] * 2)
    monkeypatch.setattr("consistency_models.data.parquet.GROUP_BYTES", 15_000)
    with pytest.raises(DataError, match="write smaller row groups"):
        image_folder(tmp_path)


# All of them


@pytest.fixture
def containers(tmp_path, pixels):
    """The same images in each container."""
    contents = [encoded(pixels(k)) for k in range(6)]
    images = {f"{k}.png": content for k, content in enumerate(contents)}
    folder = write(tmp_path / "folder", images)
    return {
        "folder": folder,
        "zip": zipped(folder),
        "tar": tar(tmp_path / "a.tar", images),
        "lmdb": database(tmp_path / "lmdb", {name.encode(): content for name, content in images.items()}),
        "parquet": table(tmp_path / "a.parquet", contents),
    }


def test_every_container_gives_the_same_images(containers, pixels):
    digests = {image_folder(root).digest for root in containers.values()}
    assert len(digests) == 1
    assert same(image_folder(containers["tar"]), range(6), pixels)


@pytest.mark.parametrize("kind", ["tar", "lmdb", "parquet"])
def test_damaged_containers(kind, containers, tmp_path):
    """Flipped, missing and repeated bytes: images or a DataError, and the rest of a tar stays what it was."""
    source = containers[kind] / "data.mdb" if kind == "lmdb" else containers[kind]
    content, folder = source.read_bytes(), tmp_path / "damaged"
    folder.mkdir()
    sets = {"tar": tar_sets, "lmdb": lmdb_sets, "parquet": parquet_sets}[kind]
    refused = 0
    for seed in range(80):
        (folder / source.name).write_bytes(scrambled(content, random.Random(seed)))
        root = folder if kind == "lmdb" else folder / source.name
        try:
            train, _ = sets(root, None)
        except DataError:
            refused += 1
            continue
        for i in range(len(train)):
            with contextlib.suppress(Exception):  # of any type: the image is bad
                assert len(train.read(i)) <= len(content) + 100_000
    assert refused > 10
    assert [path.name for path in folder.iterdir()] == [source.name]


def test_a_file_that_is_cut_off_after_the_start(containers):
    train, _ = encoded_sets(containers["tar"], None)
    with open(containers["tar"], "r+b") as file:
        file.truncate(2000)
    with pytest.raises(DataError, match="is cut off"):
        train.read(5)


def test_a_list_that_was_changed_is_built_again(tmp_path, pixels):
    path, cache = tar(tmp_path / "a.tar", shard([0], pixels)), tmp_path / "cache"
    image_folder(path, cache_dir=cache)
    (stored,) = cache.glob("*.ranges.npz")
    np.savez(stored, text=np.array([object()]), part=np.zeros(1))
    assert image_folder(path, cache_dir=cache).n == 1


def test_a_list_without_members():
    assert len(Places.of([]).names) == 0
    assert Places.of([]).offset.shape == (0,)
