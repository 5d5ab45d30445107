"""Every conf/data/*.yaml: composed, with the keys that others rely on, and where possible made into its object."""

from pathlib import Path

import numpy as np
import pytest
from data.conftest import write
from data.test_sources import archive, fashion_files
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import open_dict

from consistency_models.data import DataModule

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
KEYS = {
    "name",
    "root",
    "image_size",
    "channels",
    "num_classes",
    "sigma_data",
    "batch_size",
    "conditional",
    "flip",
    "workers",
}
OPTIONS = {
    "image_folder": ["data.image_size=8"],
    "latents": ["data.image_size=8", "data.source.scale=1", "data.source.shift=0"],
    "npz": ["data.image_size=8"],
    "webdataset": ["data.image_size=8", "data.source.urls='http://127.0.0.1/a.tar'"],
}
TOLD = ("clamp", "evaluation_images", "network_classes")  # for other parts of the configuration


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"data={name}", *overrides], return_hydra_config=False)


@pytest.fixture
def root(tmp_path, pixels):
    """A folder in which every source finds its files."""
    archive(tmp_path)
    np.savez(tmp_path / "images.npz", arr_0=pixels(0)[None])
    np.save(tmp_path / "latents.npy", np.ones((2, 8, 8, 8), np.float16))
    return write(tmp_path, {**fashion_files(), "0.png": pixels(0, 16)})


@pytest.fixture
def two(tmp_path_factory, pixels):
    """Two folders of an image each."""
    return write(tmp_path_factory.mktemp("two"), {"a/0.png": pixels(0, 16), "b/1.png": pixels(1, 16)})


@pytest.mark.parametrize("name", NAMES)
def test_makes_its_data_module(name, root, two, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    config = composed(name, f"data.root={root}", *OPTIONS.get(name, []))
    if name == "npz":
        config.data.root = str(root / "images.npz")
    if "images" in config.data.source:  # a set of a paper: two images, in two classes if it has classes
        config = composed(name, f"data.root={two}", "data.source.images=[2]")
        config.data.num_classes = 2 if config.data.num_classes else 0
    assert set(config.data) >= KEYS
    with open_dict(config):
        for key in TOLD:
            del config.data[key]
        for key in ("download", "urls"):
            config.data.source.pop(key, None)
    module = instantiate(config.data)
    assert isinstance(module, DataModule)
    assert module.name == name
    assert module.shape == (config.data.channels, config.data.image_size, config.data.image_size)
    assert module.source.num_classes == (config.data.num_classes or 0)


@pytest.mark.parametrize("name", ["digits", "mixture", "mixture_16d"])
def test_states_the_sigma_data_that_is_measured(name):
    config = composed(name)
    assert instantiate(config.data.source).sigma_data == pytest.approx(config.data.sigma_data, rel=0.03)


@pytest.mark.parametrize(
    ("overrides", "flip"),
    [
        (["data=digits"], False),
        (["data=cifar10"], True),
        (["data=cifar10", "augment=none"], False),
        (["data=digits", "augment=flip"], True),
        (["data=cifar10", "data.flip=false"], False),
    ],
)
def test_flips(overrides, flip):
    assert composed(overrides[0].removeprefix("data="), *overrides[1:]).data.flip is flip
