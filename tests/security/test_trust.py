"""Every public callable of the package: what is marked changes nothing on the machine, what is not is refused."""

import importlib
import inspect
import json
import pkgutil
import re

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import get_object
from jobs import ROOT
from PIL import Image
from security.watch import watched
from torch import nn

import consistency_models
from consistency_models.app.checks.targets import find
from consistency_models.data import digits
from consistency_models.errors import CheckpointError
from consistency_models.sampling.general_ode import Linear
from consistency_models.storage.loading import PARTS, checked_config
from consistency_models.trust import MARK, fixed_arguments, is_trusted, trusted_packages


def modules():
    for found in pkgutil.walk_packages(consistency_models.__path__, "consistency_models."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def callables():
    """Dotted name -> object, of every function and class that a module of the package defines, with their methods."""
    found = {}
    for module in modules():
        for name, item in vars(module).items():
            if getattr(item, "__module__", None) != module.__name__ or not callable(item):
                continue
            found[f"{module.__name__}.{name}"] = item
            if inspect.isclass(item):
                methods = {key: getattr(item, key) for key in vars(item) if not key.startswith("__")}
                found |= {f"{module.__name__}.{name}.{key}": each for key, each in methods.items() if callable(each)}
    return {name: item for name, item in found.items() if exists(name)}


def exists(name):
    try:
        return bool(get_object(name))
    except (ImportError, ValueError):
        return False


EVERY = callables()
"""Without `data.cifar10.cifar10` and the like, where a function hides the module of its name."""
MARKED = {name: item for name, item in EVERY.items() if fixed_arguments(name) is not None}


def targets_of(node):
    """The `_target_`s in a part of a YAML file."""
    if isinstance(node, dict):
        own = [node["_target_"]] if isinstance(node.get("_target_"), str) else []
        return own + [target for value in node.values() for target in targets_of(value)]
    return [target for value in node for target in targets_of(value)] if isinstance(node, list) else []


def test_all_that_conf_offers_for_a_model_its_data_and_features_is_marked():
    named = {
        target
        for part in PARTS
        for path in (ROOT / "conf" / part).glob("*.yaml")
        for target in targets_of(yaml.safe_load(path.read_text()))
    }
    assert len(named) > 20
    assert {target for target in named if fixed_arguments(target) is None} == set()


def test_what_is_not_marked_is_refused():
    unmarked = set(EVERY) - set(MARKED)
    assert len(unmarked) > 300
    for name in unmarked:
        assert not find(name).loadable, name
        for part in PARTS:
            with pytest.raises(CheckpointError, match="network, sampler, data set or the like"):
                checked_config({part: {"_target_": name}})


def test_the_command_check_finds_the_same_marks_in_the_source():
    assert {name for name in MARKED if not find(name).loadable} == set()
    assert len(MARKED) > 50


def test_a_subclass_is_not_marked():
    class Mine(consistency_models.networks.MLP):
        pass

    assert MARK not in vars(Mine)


VALUES = {
    **{"image_size": 8, "img_resolution": 8, "channels": 1, "in_channels": 1, "out_channels": 1, "num_classes": 10},
    **{"steps": 2, "N": 4, "segments": 2, "batch_size": 8, "sigmas": [2.0, 1.0], "ts": [0, 1], "label_dim": 0},
    **{"model_channels": 32, "channel_mult": [1, 1], "head_channels": 32, "num_channels": 32, "num_res_blocks": 1},
    **{"curriculum": lambda k, K: 4, "spacing": consistency_models.noise.cosine_grid, "std": 0.5, "c_1": 0.001},
    **{"c_2": 0.008, "levels": [2.0, 1.0, 0.0], "decays": [0.9], "decay": 0.9, "initial": 0.9, "s0": 2, "s1": 8},
    **{"images": 100, "stds": [0.1], "reference": "train", "metrics": [], "name": "fd", "lr": 1e-3, "c": 0.1},
    **{"params": [nn.Parameter(torch.zeros(2))], "mean": 0.0, "p": 0.1, "dropout": 0.0, "weights": None},
    **{"img_channels": 1, "attention_resolutions": [8], "schedule": Linear(), "xflip": 1.0, "logvar_channels": 8},
    **{"extractor": lambda data: nn.Identity(), "sigma_data": 0.5, "max_images": 100, "warmup_images": 0},
    **{"scalings": consistency_models.noise.Discrete()},
    "config": {
        **{"_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [32], "layers_per_block": 1},
        **{"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
    },
}


@pytest.fixture
def root(tmp_path):
    """A folder that every data set reads: image files by class."""
    for split in ("train", "test"):
        for label in "01":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for k in range(2):
                Image.fromarray(np.full((32, 32, 3), 40 * k, np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "images"


def arguments_of(name, item, root):
    given = {**VALUES, "root": root, "data": digits(), "source": digits()}
    given |= {"steps": [4], "segments": 2} if name.endswith(".Phases") else {}
    given |= {"channels": 2} if name.endswith(".FourierEmbedding") else {}
    found = {}
    for key, parameter in inspect.signature(item).parameters.items():
        needed = parameter.default is inspect.Parameter.empty or key in ("xflip", "config")
        if needed and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            found[key] = given[key]
    return found


NEEDS_FILES = {
    "InceptionV3",
    "DINOv2",
    "fashion_mnist",
    "npz_images",
}  # of others: they end with an error that says which


@pytest.mark.parametrize("name", sorted(MARKED))
def test_construction_writes_nothing_and_asks_no_network(name, root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CONSISTENCY_MODELS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    item, fixed = MARKED[name], fixed_arguments(name)
    arguments = arguments_of(name, item, root) | fixed
    if getattr(item, "needs_package", None) == "diffusers":
        importlib.import_module("diffusers.models.unets.unet_2d")  # imports urllib3, which tries a local IPv6 socket
    with watched(tmp_path / "cache") as events:
        try:
            item(**arguments)
        except (FileNotFoundError, ValueError):
            assert name.rpartition(".")[2] in NEEDS_FILES
    assert not events
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("source", ["cifar10", "fashion_mnist", "image_folder"])
def test_data_that_a_file_names_makes_no_folder_and_asks_no_network(source, tmp_path):
    node = {"_target_": f"consistency_models.data.{source}", "root": str(tmp_path / "new"), "download": True}
    node["cache_dir"] = str(tmp_path / "cache")
    node = checked_config({"data": {"source": node}})["data"]["source"]
    taken = inspect.signature(getattr(consistency_models.data, source)).parameters
    with watched() as events, pytest.raises(ValueError, match="new"):
        getattr(consistency_models.data, source)(**{key: node[key] for key in taken if key in node})
    assert not events
    assert list(tmp_path.iterdir()) == []


def test_the_advice_can_be_followed(tmp_path, monkeypatch):
    (tmp_path / "trusted_package").mkdir()
    (tmp_path / "trusted_package/__init__.py").write_text("def network():\n    return 1\n\n\nfrom os import system\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"network": {"_target_": "trusted_package.network"}}
    with pytest.raises(CheckpointError) as caught:
        checked_config(node)
    name, value = re.search(r", set (\w+)=(\w+), or trust=", str(caught.value)).groups()
    monkeypatch.setenv(name, value)
    assert checked_config(node) == node
    monkeypatch.delenv(name)
    assert checked_config(node, ["trusted_package"]) == node
    with pytest.raises(CheckpointError):  # of a module of the standard library, which the package imports
        checked_config({"network": {"_target_": "trusted_package.system"}}, ["trusted_package"])


@pytest.mark.parametrize(
    "package", ["os", "builtins", "torch", "hydra", "consistency_models", "lightning", "subprocess"]
)
def test_tools_are_never_advised_or_trusted(package, monkeypatch):
    monkeypatch.setenv("CONSISTENCY_MODELS_TRUST", f"{package},{package}.utils, ,")
    assert trusted_packages([package]) == set()
    assert not is_trusted(f"{package}.load", [package])
    with pytest.raises(CheckpointError) as caught:
        checked_config({"network": {"_target_": f"{package}.system"}}, [package])
    assert f"TRUST={package}" not in str(caught.value)


def test_names_are_as_harmless_as_json():
    config = {"network": {"_target_": "consistency_models.networks.MLP", "width": (1, 2)}}
    assert json.loads(json.dumps(checked_config(config))) == checked_config(config)
    for strange in ({1: 2}, b"x", torch.zeros(1), object()):
        with pytest.raises(CheckpointError, match="a configuration of text, numbers, lists and dicts"):
            checked_config({"network": strange})
