"""Sources of known data sets: digits, CIFAR-10's archive, Fashion-MNIST's idx files."""

import gzip
import hashlib
import importlib
import io
import pickle
import random
import tarfile
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from threading import Thread

import numpy as np
import pytest
import torch
from data.conftest import write

from consistency_models.data import DataError, cifar10, digits, fashion_mnist

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
    with pytest.raises(DataError, match=r"found neither .* set data.source.download=true"):
        cifar10(tmp_path / root)


def test_download(tmp_path, monkeypatch):
    module = importlib.import_module("consistency_models.data.cifar10")
    path = archive(tmp_path / "there") / "cifar-10-python.tar.gz"
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "there"))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{server.server_port}/{path.name}")
    with pytest.raises(DataError, match=r"could not be fetched into data.root"):
        cifar10(tmp_path / "here", download=True)  # not the official MD5 sum
    assert not list((tmp_path / "here").iterdir())
    monkeypatch.setattr(module, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    images = cifar10(tmp_path / "here", download=True)
    server.shutdown()
    server.server_close()
    assert cifar10(tmp_path / "here", download=True).digest == images.digest == cifar10(tmp_path / "there").digest


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
    with pytest.raises(ValueError, match=r"28, or 32 .*got 64"):
        fashion_mnist(tmp_path, 64)


def test_sources_give_what_torch_can_change(tmp_path):
    images = fashion_mnist(write(tmp_path, fashion_files()))
    images.images[:] = 0
    assert torch.count_nonzero(images.images) == 0
