"""Folders of pipelines that bring code: nothing of the code is run, whether the folder is taken or refused."""

import json
import shutil

import pytest

from consistency_models import load
from consistency_models.errors import CheckpointError
from consistency_models.teachers import diffusers_teacher


@pytest.fixture
def hostile(sd_folder, tmp_path, nothing_happens):
    """A folder whose parts name classes of files that write a canary when they are imported."""
    folder = tmp_path / "hostile"
    for part in ("unet", "scheduler"):
        shutil.copytree(sd_folder / part, folder / part)
    code = f"import pathlib\npathlib.Path({str(nothing_happens)!r}, 'ran').write_text('x')\n"
    for place in (folder, folder / "unet", folder / "scheduler"):
        (place / "evil.py").write_text(f"{code}class Evil: pass\n")
    index = {"_class_name": ["evil", "Evil"], "unet": ["evil", "Evil"], "scheduler": ["evil", "Evil"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copy(nothing_happens / "pickle.pt", folder / "unet/diffusion_pytorch_model.bin")
    return folder


def test_code_of_a_folder_is_not_run(hostile):
    change(hostile / "scheduler/scheduler_config.json", _class_name=["evil", "Evil"])
    assert load(hostile).shape == (4, 8, 8)
    change(hostile / "unet/config.json", auto_map={"AutoModel": "evil.Evil"})
    with pytest.raises(CheckpointError, match="auto_map"):
        diffusers_teacher(str(hostile))


def test_a_pickle_is_not_opened(hostile):
    (hostile / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="which is not read"):
        load(hostile)


@pytest.mark.parametrize("name", ["evil.Evil", "builtins.exec", "UNet2DModel\nx", None, 3])
def test_other_classes_are_not_built(hostile, name):
    change(hostile / "unet/config.json", _class_name=name)
    with pytest.raises(CheckpointError, match="allowed are UNet2DModel, UNet2DConditionModel"):
        load(hostile)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
