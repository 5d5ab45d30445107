"""Exports of students of Stable Diffusion: diffusers' own pipelines sample the images of this project."""

import json
import shutil

import pytest
import torch
from latents.conftest import CAPTIONS

from consistency_models import load
from consistency_models.conditions import Prompt
from consistency_models.errors import Exit
from consistency_models.export import to_diffusers
from consistency_models.export.__main__ import main
from consistency_models.export.pipelines import merged_weights
from consistency_models.sampling.generator import ImageNoise

SHAPE = (4, 8, 8)
PROMPTS = list(CAPTIONS[:2])


def opened(folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline, steps, guidance, monkeypatch):
    """Images of the pipeline in [0, 1], from the noise of this project."""
    noise = ImageNoise(0, [0, 1], SHAPE, "cpu")
    start = noise()
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: noise())
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
    return pipeline(PROMPTS, height=16, width=16, latents=start, **options).images


@torch.no_grad()
def ours(generator, pipeline, steps, w=None):
    """Images of this project, decoded by the VAE of the pipeline."""
    text = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    prompt = Prompt(text, guidance=None if w is None else torch.full((2,), w))
    latents = generator.sample(2, steps=steps, seed=0, labels=prompt)
    images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (images / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_whole_pipeline(steps, full_run, tmp_path, monkeypatch):
    generator = load(full_run)
    to_diffusers(generator, tmp_path)
    pipeline = opened(tmp_path)
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    assert pipeline.unet.config.time_cond_proj_dim == 256
    found = theirs(pipeline, steps, 8.0, monkeypatch)  # w = 7
    torch.testing.assert_close(found, ours(generator, pipeline, steps, 7.0), rtol=0, atol=1e-5)
    other = ours(generator, pipeline, steps, 14.0)
    assert (other - found).abs().max() > 1e-5  # w is an input


@pytest.mark.parametrize("steps", [1, 4])
def test_adapters(steps, lora_run, sd_folder, tmp_path, monkeypatch):
    from diffusers import LCMScheduler

    generator = load(lora_run)
    to_diffusers(generator, tmp_path)
    pipeline = opened(sd_folder)
    before = theirs(pipeline, 1, 1.0, monkeypatch)
    pipeline.load_lora_weights(tmp_path)
    loaded = [module for module in pipeline.unet.modules() if hasattr(module, "lora_A")]
    assert len(loaded) == 79
    assert {module.scaling["default_0"] for module in loaded} == {2.0}  # alpha/r
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, timestep_scaling=10.0)
    found = theirs(pipeline, steps, 1.0, monkeypatch)
    torch.testing.assert_close(found, ours(generator, pipeline, steps), rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-3


def test_merged_adapters(lora_run, tmp_path, monkeypatch):
    generator = load(lora_run)
    to_diffusers(generator, tmp_path, merge=True)
    pipeline = opened(tmp_path)
    assert not any("lora" in name for name in pipeline.unet.state_dict())
    torch.testing.assert_close(theirs(pipeline, 4, 1.0, monkeypatch), ours(generator, pipeline, 4), rtol=0, atol=1e-5)


def test_merging_leaves_the_student_as_it_is(lora_run):
    unet = load(lora_run).model.network.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    merged = merged_weights(unet)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    plain = {name.replace(".base_layer.", "."): value for name, value in before.items() if ".lora_" not in name}
    assert merged.keys() == plain.keys()
    assert sum(not torch.equal(merged[name], plain[name]) for name in plain) == 79


def test_the_folder_is_loaded_again_and_described(full_run, tmp_path, monkeypatch):
    out = tmp_path / "student"
    monkeypatch.setattr("sys.argv", ["export", str(full_run), str(out), "--format", "diffusers"])
    assert main() == Exit.DONE
    assert "guidance_scale=8.0" in (out / "README.md").read_text()
    index = json.loads((out / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    text = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(text, guidance=torch.tensor([7.0, 7.0]))
    a, b = (load(path).sample(2, steps=2, labels=prompt) for path in (full_run, out))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_what_is_refused(full_run, sd_folder, tmp_path, capsys, monkeypatch):
    teacher = load(sd_folder)
    with pytest.raises(ValueError, match="Discrete without one: train with preconditioning=lcm"):
        to_diffusers(teacher, tmp_path / "out")
    with pytest.raises(ValueError, match="has no adapters"):
        to_diffusers(load(full_run), tmp_path / "out", merge=True)
    with pytest.raises(ValueError, match=r"--pipeline: .* is no folder with model_index.json"):
        to_diffusers(load(full_run), tmp_path / "out", pipeline=tmp_path)
    monkeypatch.setattr("sys.argv", ["export", str(full_run), str(tmp_path / "out"), "--merge"])
    assert main() == Exit.BAD_INPUT
    assert "--merge=true is not allowed: --format=safetensors has no use for it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def no_index(folder):
    (folder / "model_index.json").write_text("{broken")


def a_list(folder):
    (folder / "model_index.json").write_text("[]")


def no_vae(folder):
    shutil.rmtree(folder / "vae")


def outside(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"../other": ["diffusers", "AutoencoderKL"]}))
    (folder.parent / "other").mkdir()


def parent(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"..": ["diffusers", "AutoencoderKL"]}))


def nameless(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"": ["diffusers", "AutoencoderKL"]}))


def pickled(folder):
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder/pytorch_model.bin")


def half(folder):
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_index, "model_index.json is no JSON"),
        (a_list, "is no mapping"),
        (no_vae, r"names vae, which has no folder.* or write \"vae\": \[null, null\]"),
        (outside, r"names \.\./other, which has no folder"),
        (parent, r"names \.\., which has no folder"),
        (nameless, r"names , which has no folder"),
        (pickled, r"text_encoder has no .*found pytorch_model\.bin: give a folder that"),
        (half, r"vae has no .*found diffusion_pytorch_model\.fp16\.safetensors"),
    ],
)
def test_an_incomplete_base_is_refused_before_anything_is_written(spoil, message, full_run, sd_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(sd_folder, base)
    spoil(base)
    with pytest.raises(ValueError, match=message):
        to_diffusers(load(full_run), tmp_path / "out", pipeline=base)
    assert not (tmp_path / "out").exists()


def test_adapters_as_safetensors_are_whole(lora_run, tmp_path):
    from consistency_models.export import to_safetensors

    to_safetensors(load(lora_run), tmp_path / "student.safetensors")
    text = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0))
    a, b = (load(path).sample(2, steps=2, labels=Prompt(text)) for path in (lora_run, tmp_path / "student.safetensors"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
