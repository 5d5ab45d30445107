"""What all tests share."""

import os

# One thread a test process, before torch is imported: the workers of pytest-xdist share the cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import pickle
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from parity.golden import OURS, load


def pytest_collection_finish():
    """The collector need not walk what the tests import: that is a tenth of the time of many tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _a_text_is_parsed_once():
    """Parsing the files of conf/ takes a third of the time of a composition."""
    parse, parsed = OmegaConf.load, {}

    def load_file(file):
        if isinstance(file, str | Path):
            return parse(file)
        text = file.read()
        if text not in parsed:
            file.seek(0)
            parsed[text] = pickle.dumps(parse(file))
        return pickle.loads(parsed[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_file)
        yield


@pytest.fixture(scope="module")
def rough_pictures():
    """Pictures keep their content and lose their layout, which is half of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.get_layout_engine", lambda figure: None)
        yield


@pytest.fixture(scope="session")
def golden():
    """`golden("exact/ict.npz")`: reference numbers by name, as tensors."""
    return lambda name: load(OURS / name)


@pytest.fixture(scope="session")
def fixed_rows():
    """`fixed_rows(values)`: in place of `BatchRandom`, draws these values in any stream."""

    class FixedRows:
        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def draw(self, stream, *shape, device="cpu", dtype=torch.float32):
            return self.values.to(device, dtype)

        rand = randn = draw

    return FixedRows


@pytest.fixture(scope="session")
def as_in_main():
    """What main() does before it checks anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJECT_ROOT", str(Path(__file__).parents[1]))
        patch.delenv("CONSISTENCY_MODELS_RUNS", raising=False)
        yield


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A tiny StableDiffusionPipeline with random weights in a folder."""
    pytest.importorskip("transformers")
    from tiny_pipelines import save_sd

    return save_sd(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory):
    """A tiny StableDiffusionXLPipeline with random weights in a folder."""
    pytest.importorskip("transformers")
    from tiny_pipelines import save_sdxl

    return save_sdxl(tmp_path_factory.mktemp("pipelines") / "sdxl")
