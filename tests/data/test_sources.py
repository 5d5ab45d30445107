"""Sources of known data sets: digits, CIFAR-10's archive, Fashion-MNIST's idx files."""

import gzip
import hashlib
import importlib
import io
import pickle
import random
import tarfile
from dataclasses import replace
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from threading import Thread

import numpy as np
import pytest
import torch
from data.conftest import write
from hydra.errors import InstantiationException

from consistency_models.app.build import build_data, with_absolute_root
from consistency_models.data import DataError, cifar10, digits, fashion_mnist
from consistency_models.storage import fetching

# Digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    images, truth = digits(), load_digits()
    scaled = images.images / 127.5 - 1
    assert (images.shape, images.n, images.num_classes, images.test) == ((1, 8, 8), 1797, 10, None)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    np.testing.assert_allclose(scaled[:, 0], truth.images / 8 - 1, atol=1.001 / 255)
    assert images.labels.tolist() == truth.target.tolist()
    assert images.sigma_data == pytest.approx(0.752, abs=0.001)
    assert images.class_names == tuple("0123456789")


# CIFAR-10


def batch(k, n=4):
    generator = np.random.default_rng(k)
    data = generator.integers(0, 256, (n, 3072), dtype=np.uint8)
    return {"data": data, "labels": [int(label) for label in generator.integers(0, 10, n)]}


def archive(root, **changes):
    """An archive of the official form; changes replace or, with None, remove the content of a file."""
    contents = {f"data_batch_{k}": batch(k) for k in range(1, 6)} | {"test_batch": batch(6)} | changes
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name, content in contents.items():
            if content is not None:
                content = content if isinstance(content, bytes) else pickle.dumps(content)
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return root


def test_cifar10_from_its_archive(tmp_path):
    images = cifar10(archive(tmp_path))
    truth = np.concatenate([batch(k)["data"] for k in range(1, 6)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(images.images.numpy(), truth)
    assert images.labels.tolist() == [label for k in range(1, 6) for label in batch(k)["labels"]]
    assert np.array_equal(images.test.images.numpy(), batch(6)["data"].reshape(-1, 3, 32, 32))
    assert (images.num_classes, images.shape, images.name) == (10, (3, 32, 32), "cifar10")
    assert images.class_names == images.test.class_names
    assert images.class_names[3] == "cat"
    assert cifar10(tmp_path / "cifar-10-python.tar.gz").digest == images.digest


def test_cifar10_reads_what_python_2_has_pickled(tmp_path):
    """The official files: protocol 2, arrays by numpy.core.multiarray, byte strings."""
    truth = batch(1, n=2)
    raw = truth["data"].tobytes()
    stream = (
        b"\x80\x02}(U\x04data" + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt"
        b"R(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tbU\x06labels]("
        + bytes(byte for label in truth["labels"] for byte in (0x4B, label))
        + b"eu."
    )
    images = cifar10(archive(tmp_path, data_batch_1=stream))
    assert np.array_equal(images.images[:2].numpy(), truth["data"].reshape(2, 3, 32, 32))
    assert images.labels[:2].tolist() == truth["labels"]


def test_cifar10_from_folders_of_images(tmp_path, pixels):
    files = {f"train/{c}/0.png": pixels(k, 32) for k, c in enumerate("ab")} | {"test/a/0.png": pixels(2, 32)}
    images = cifar10(write(tmp_path / "folders", files))
    assert (images.n, images.test.n, images.num_classes, images.name) == (2, 1, 2, "cifar10")


class Touches:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("place", ["data", "labels", "whole"])
def test_a_malicious_archive_runs_nothing(tmp_path, place):
    trap = Touches(tmp_path / "touched")
    bad = trap if place == "whole" else {**batch(1), place: trap}
    assert pickle.loads(pickle.dumps(trap)).name  # the trap works …
    (tmp_path / "touched").unlink()
    with pytest.raises(DataError, match=r"data_batch_3 is no batch of CIFAR-10 \(asks for .*\.open"):
        cifar10(archive(tmp_path / "root", data_batch_3=bad))
    assert not (tmp_path / "touched").exists()  # … and was not sprung


@pytest.mark.parametrize("module", ["os", "builtins", "numpy.core.multiarray", "numpy", "numpy.testing"])
@pytest.mark.parametrize("name", ["system", "eval", "load", "fromfile"])
def test_the_unpickler_finds_nothing_else(tmp_path, module, name):
    stream = f"c{module}\n{name}\n.".encode()
    with pytest.raises(DataError, match=f"asks for {module}.{name}"):
        cifar10(archive(tmp_path, test_batch=stream))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no data_batch_1"),
        (b"", "no batch of CIFAR-10"),
        (pickle.dumps({}), "no batch of CIFAR-10"),
        ({**batch(1), "labels": [0, 1]}, "3,072 bytes with n labels"),
        ({**batch(1), "labels": [0, 1, 2, 10]}, "labels from 0 to 9"),
        ({**batch(1), "data": np.zeros((4, 3072))}, "3,072 bytes"),
        ({**batch(1), "data": np.zeros((4, 3071), np.uint8)}, "3,072 bytes"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "3,072 bytes"),
    ],
)
def test_an_archive_that_is_not_cifar10(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        cifar10(archive(tmp_path, data_batch_1=content))


def test_an_archive_that_is_cut_off(tmp_path):
    path = archive(tmp_path) / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz cannot be read .*fetch it again"):
        cifar10(tmp_path)


def test_an_archive_with_a_flipped_bit_is_refused(tmp_path):
    """Most flipped bits decode well, into other pixels: the checksum at the end alone knows."""
    path, draw = archive(tmp_path) / "cifar-10-python.tar.gz", random.Random(0)
    good, truth = path.read_bytes(), cifar10(tmp_path).digest
    refused = 0
    for _ in range(60):
        bad = bytearray(good)
        bad[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            assert cifar10(tmp_path).digest == truth  # bits that carry nothing, such as the archive's time
        except DataError as error:
            refused += str(error).startswith(str(path))
    assert refused >= 55


@pytest.mark.parametrize("root", ["", "none"])
def test_nothing_there_says_how_to_get_it(tmp_path, root):
    with pytest.raises(DataError, match=r"found neither .* leave data.root .* out to fetch 170 MB once"):
        cifar10(tmp_path / root)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("consistency_models.data.cifar10"), "ARCHIVE_BYTES", 50_000)
    with pytest.raises(DataError, match="unpacks to more than 50,000 bytes"):
        cifar10(archive(tmp_path))


# Published files


def published_files(source, folder, monkeypatch, port=9):
    """Let the files of a source be published on the loopback address, with the sums of those in a folder."""
    files = {
        f"http://127.0.0.1:{port}/{path.name}": f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
        for path in sorted(folder.iterdir())
    }
    monkeypatch.setitem(vars(source), "published", replace(source.published, files=files))


def config_of(source, cache, **changes):
    names = {"_target_": f"consistency_models.data.{source.__name__}", "root": None, "download": True}
    module = {"_target_": "consistency_models.data.DataModule", "batch_size": 2}
    return {"data": {**module, "source": {**names, "cache_dir": str(cache), **changes}}}


@pytest.mark.parametrize("source", [cifar10, fashion_mnist])
def test_files_are_fetched_once_into_the_cache(tmp_path, monkeypatch, source):
    there = archive(tmp_path / "there") if source is cifar10 else write(tmp_path / "there", fashion_files())
    handler = partial(SimpleHTTPRequestHandler, directory=there)
    server = HTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    published_files(source, there, monkeypatch, server.server_port)
    config = config_of(source, tmp_path / "cache")
    digest = build_data(config, may_fetch=True).source.digest
    server.shutdown()
    server.server_close()
    assert build_data(config, may_fetch=True).source.digest == digest == source(there).digest
    names = {path.name for path in (tmp_path / "cache" / "data" / source.__name__).iterdir() if path.suffix != ".lock"}
    assert names == {path.name for path in there.iterdir()}


@pytest.mark.parametrize("source", [cifar10, fashion_mnist])
@pytest.mark.parametrize(
    ("changes", "may_fetch"), [({}, False), ({"download": False}, True)], ids=["a checkpoint's", "download=false"]
)
def test_nothing_is_fetched_without_leave(tmp_path, monkeypatch, source, changes, may_fetch):
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(InstantiationException, match=r"cache/data/\w+: found n.* leave data.root .* out to fetch"):
        build_data(config_of(source, tmp_path / "cache", **changes), may_fetch=may_fetch)
    assert not (tmp_path / "cache").exists()


def test_a_source_cannot_be_told_to_fetch(tmp_path):
    for source in (cifar10, fashion_mnist):
        with pytest.raises(TypeError, match="download"):
            source(cache_dir=tmp_path, download=True)


def test_without_a_network_one_line_names_file_and_folder(tmp_path, monkeypatch):
    published_files(cifar10, archive(tmp_path / "there"), monkeypatch)
    with pytest.raises(DataError) as error:
        build_data(config_of(cifar10, tmp_path / "cache"), may_fetch=True)
    assert str(error.value).count("\n") == 0
    assert f"into {tmp_path / 'cache' / 'data' / 'cifar10'}, or set data.root" in str(error.value)
    assert "cifar-10-python.tar.gz (md5:" in str(error.value)


def test_a_root_of_the_users_is_never_fetched_into(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(InstantiationException, match="mine: found neither"):
        build_data(config_of(cifar10, tmp_path, root=str(tmp_path / "mine")), may_fetch=True)


def test_a_source_needs_a_place():
    for source in (cifar10, fashion_mnist):
        with pytest.raises(DataError, match=r"data.root is null, and so is data.source.cache_dir"):
            source()


# Fashion-MNIST


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def fashion(k, n):
    generator = np.random.default_rng(k)
    return generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), generator.integers(0, 10, n, dtype=np.uint8)


def fashion_files(suffix=".gz", **changes):
    pack = gzip.compress if suffix else bytes
    (images, labels), (test_images, test_labels) = fashion(0, 6), fashion(1, 3)
    contents = {
        "train-images-idx3-ubyte": idx(images),
        "train-labels-idx1-ubyte": idx(labels),
        "t10k-images-idx3-ubyte": idx(test_images),
        "t10k-labels-idx1-ubyte": idx(test_labels),
    }
    return {name + suffix: pack(content) for name, content in contents.items()} | changes


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("size", [28, 32])
def test_fashion_mnist(tmp_path, suffix, size):
    images = fashion_mnist(write(tmp_path, fashion_files(suffix)), size)
    (truth, labels), (test_truth, test_labels) = fashion(0, 6), fashion(1, 3)
    frame = (size - 28) // 2
    assert (images.shape, images.num_classes) == ((1, size, size), 10)
    assert np.array_equal(images.images[:, 0, frame : frame + 28, frame : frame + 28].numpy(), truth)
    assert images.images.sum() == truth.sum(dtype=int)  # the frame is black
    assert images.labels.tolist() == labels.tolist()
    assert images.test.labels.tolist() == test_labels.tolist()
    assert images.test.images.sum() == test_truth.sum(dtype=int)
    assert images.class_names[9] == "Ankle boot"


def test_mnist_is_told_apart(tmp_path):
    labels = gzip.compress(idx(np.array([5, 0, 4, 1, 9, 2], np.uint8)), mtime=0)
    images = fashion_mnist(write(tmp_path, fashion_files(**{"train-labels-idx1-ubyte.gz": labels})))
    assert images.class_names == tuple("0123456789")


GOOD = idx(fashion(0, 6)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD, mtime=0)[:-100], "cannot be read .*fetch it again"),
        (b"no gzip", "cannot be read"),
        (gzip.compress(GOOD[:-1], mtime=0), "is cut off"),
        (gzip.compress(b"", mtime=0), "is not an idx file"),
        (gzip.compress(idx(fashion(0, 6)[1]), mtime=0), "with 3 dimensions"),
        (gzip.compress(idx(fashion(0, 6)[0][:5]), mtime=0), "images of shape \\(5, 28, 28\\) and 6 labels"),
        (gzip.compress(idx(fashion(0, 6)[0][:, :27]), mtime=0), "need \\(n, 28, 28\\)"),
    ],
)
def test_files_that_are_not_fashion_mnist(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        fashion_mnist(write(tmp_path, fashion_files(**{"train-images-idx3-ubyte.gz": content})))


def test_fashion_mnist_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"found no train-images-idx3-ubyte|found no t10k-images-idx3-ubyte"):
        fashion_mnist(tmp_path)


def test_fashion_mnist_has_two_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"image_size=64 is not .* 28, 32"):
        fashion_mnist(tmp_path, 64)


def test_sources_give_what_torch_can_change(tmp_path):
    images = fashion_mnist(write(tmp_path, fashion_files()))
    images.images[:] = 0
    assert torch.count_nonzero(images.images) == 0


@pytest.mark.parametrize(
    ("root", "expected"), [(None, "cache/data/cifar10"), ("images", "here/images"), ("~/images", "home/images")]
)
def test_a_runs_configuration_says_absolutely_where_its_data_lie(tmp_path, monkeypatch, root, expected):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = config_of(cifar10, tmp_path / "cache", root=root)
    config["data"]["root"] = root
    found = with_absolute_root(config)["data"]
    assert found["root"] == found["source"]["root"] == str(tmp_path / expected)
    assert config["data"]["root"] == root
