"""npz files of OpenAI's layout, and torchvision's unpacked CIFAR-10."""

import pickle
import random
import tarfile
import zipfile

import numpy as np
import pytest
from data.test_sources import Touches, archive
from security.formats import scrambled

from consistency_models.data import DataError, cifar10, npz_images


def file(path, images=None, **arrays):
    np.savez(path, **({"arr_0": np.zeros((3, 4, 4, 3), np.uint8)} if images is None else {"arr_0": images}), **arrays)
    return path


def test_images_and_classes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    images = npz_images(file(tmp_path / "a.npz", pixels, arr_1=np.array([0, 2, 1, 1, 0])), name="samples")
    assert np.array_equal(images.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert (images.name, images.labels.tolist(), images.num_classes) == ("samples", [0, 2, 1, 1, 0], 3)
    assert images.digest == npz_images(file(tmp_path / "b.npz", pixels, arr_1=np.array([0, 2, 1, 1, 0]))).digest


def test_without_classes(tmp_path):
    images = npz_images(file(tmp_path / "a.npz", mu=np.zeros(3)))
    assert (images.n, images.labels, images.num_classes) == (3, None, 0)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((2, 4, 4, 3))}, "arr_0 is float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "arr_0 is uint8 of shape"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "arr_0 is uint8 of shape"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, "arr_0 is uint8 of shape"),
        ({"arr_1": np.zeros(2, int)}, r"arr_1 is int64 of shape \(2,\)"),
        ({"arr_1": np.zeros(3)}, "arr_1 is float64"),
        ({"arr_1": np.array([0, -1, 0])}, "arr_1 has the classes -1"),
        ({"arr_1": np.array([{}, 1, 2], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_other_arrays(tmp_path, arrays, said):
    with pytest.raises(DataError, match=said):
        npz_images(file(tmp_path / "a.npz", **arrays))


def test_a_size_that_is_only_stated(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 256, 256, 3)}"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        out.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(99))
    with pytest.raises(DataError, match="but has only"):
        npz_images(tmp_path / "a.npz")


def test_a_file_that_unpacks_to_more_than_the_limit(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", arr_0=np.zeros((30, 64, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"data\.source\.max_bytes=368768"):
        npz_images(tmp_path / "a.npz", max_bytes=1000)
    assert npz_images(tmp_path / "a.npz").n == 30


def test_damaged_files(tmp_path):
    content, refused = file(tmp_path / "a.npz", arr_1=np.arange(3)).read_bytes(), 0
    for seed in range(80):
        (tmp_path / "b.npz").write_bytes(scrambled(content, random.Random(seed)))
        try:
            npz_images(tmp_path / "b.npz")
        except DataError:
            refused += 1
    assert refused > 10


# CIFAR-10, unpacked


@pytest.fixture
def unpacked(tmp_path):
    with tarfile.open(archive(tmp_path / "packed") / "cifar-10-python.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / "cifar-10-batches-py"


def test_unpacked_cifar10(unpacked):
    expected = cifar10(unpacked.parent / "packed").digest
    assert cifar10(unpacked).digest == expected
    assert cifar10(unpacked.parent).digest == expected


def test_unpacked_cifar10_runs_nothing(unpacked):
    trap = Touches(unpacked / "touched")
    (unpacked / "data_batch_2").write_bytes(pickle.dumps(trap))
    with pytest.raises(DataError, match=r"data_batch_2 is no batch of CIFAR-10 \(asks for .*\.open"):
        cifar10(unpacked)
    assert not (unpacked / "touched").exists()


def test_unpacked_cifar10_lacks_a_file(unpacked):
    (unpacked / "data_batch_4").unlink()
    with pytest.raises(DataError, match="has no data_batch_4"):
        cifar10(unpacked)
