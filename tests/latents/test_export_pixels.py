"""Exports of pixel students, a UNet2DModel: the code of the export's README samples the images of this project."""

import re

import pytest
import torch
from jobs import TINY, run

from consistency_models import load
from consistency_models.errors import Exit
from consistency_models.export import to_diffusers
from consistency_models.sampling.generator import ImageNoise

SHAPE = (1, 8, 8)
LORA = ("network=diffusers_lora", "network.lora.r=2", "network.lora.alpha=8", "model.target_ema=null")


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    """The folder of a DDPMPipeline with random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("pixels") / "ddpm"
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks)
    DDPMPipeline(unet, DDPMScheduler(beta_schedule="linear")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[(), LORA], ids=["all weights", "adapters"])
def student(request, ddpm, tmp_path_factory):
    data = ("data=digits", "data.conditional=false", "data.batch_size=4", "features=identity", "ema.decays=[0.5]")
    teacher = ("model=lcm", "teacher=diffusers", f"teacher.path={ddpm}", "model.w_embedding=null", "optimizer.lr=0.01")
    folder = tmp_path_factory.mktemp("students") / "run"
    assert run(folder, *data, *teacher, *TINY, "trainer.max_steps=2", *request.param) == Exit.DONE
    return folder


def test_the_loop_of_the_readme(student, ddpm, tmp_path, monkeypatch):
    generator = load(student)
    adapters = generator.model.network.lora is not None
    to_diffusers(generator, tmp_path / "out", merge=adapters)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL)
    # In float64: x - σ·F at σ = 157, the top of this table, loses 3e-5 in float32, on both sides.
    code = code.replace('subfolder="unet")', 'subfolder="unet").double()')
    noise = ImageNoise(0, list(range(16)), SHAPE, "cpu")
    draws = [noise().double() for _ in range(4)]
    theirs, ours, names = iter(draws), iter(draws), {}
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("torch.randn", lambda *_: next(theirs))
        patched.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(theirs))
        exec(code, names)
    with torch.no_grad():
        sampler = generator.make_sampler(steps=4)
        expected = sampler(generator.model.double(), next(ours), lambda: next(ours)).clamp(-1, 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(names["images"] / 2, expected / 2, rtol=0, atol=1e-5)
    before = load(ddpm).model.network.unet.state_dict()
    after = names["unet"].state_dict()
    assert after.keys() == before.keys()
    assert any((after[name] - before[name]).abs().max() > 1e-3 for name in before)  # the training is in the export


@pytest.mark.parametrize("student", [LORA], ids=["adapters"], indirect=True)
def test_adapters_of_pixels_are_merged_only(student, tmp_path):
    generator = load(student)
    with pytest.raises(ValueError, match=r"pipelines of pixels load no adapters: add --merge"):
        to_diffusers(generator, tmp_path / "out")
    assert not (tmp_path / "out").exists()
