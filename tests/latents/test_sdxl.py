"""Adapters of Stable Diffusion XL: encoded, trained, exported, and run by diffusers' pipeline."""

import torch
from jobs import run
from latents.conftest import CAPTIONS, LORA

from consistency_models import load
from consistency_models.conditions import Prompt
from consistency_models.data.encode import encode
from consistency_models.errors import Exit
from consistency_models.export import to_diffusers
from consistency_models.sampling.generator import ImageNoise


def test_adapters_of_sdxl(images, sdxl_folder, arguments, tmp_path, monkeypatch):
    from diffusers import LCMScheduler, StableDiffusionXLPipeline

    encode(sdxl_folder, images, tmp_path / "latents")
    paths = (f"data.root={tmp_path / 'latents'}", f"teacher.path={sdxl_folder}", "model.guidance_w=[3,15]")
    assert run(tmp_path / "run", *arguments(*LORA, *paths, "trainer.max_steps=2")) == Exit.DONE
    student = load(tmp_path / "run")
    to_diffusers(student, tmp_path / "lora")

    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, timestep_scaling=10.0)
    pipeline.load_lora_weights(tmp_path / "lora")
    prompts = list(CAPTIONS[:2])

    def theirs(kind):
        noise = ImageNoise(0, [0, 1], (4, 8, 8), "cpu")
        start = noise()
        monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: noise())
        options = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": kind}
        return pipeline(prompts, height=16, width=16, latents=start, **options).images

    ours = student.sample(prompts=prompts, steps=2) / 2 + 0.5
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs("pt"), ours, rtol=0, atol=1e-5)

    text, _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    ours = student.sample(2, steps=2, labels=Prompt(text, pooled, sizes))
    # Latents of random weights are as large as 60, where float32 has steps of 4e-6: 1e-5 of the largest.
    torch.testing.assert_close(theirs("latent"), ours, rtol=0, atol=1e-5 * max(1.0, ours.abs().max().item()))
