"""`Generator.sample(prompts=[…])`: texts in, images out, as diffusers' own pipelines make them."""

import shutil

import pytest
import torch
from latents.conftest import CAPTIONS

from consistency_models import load
from consistency_models.conditions import Prompt
from consistency_models.sampling.generator import Generator, ImageNoise

PROMPTS = [*CAPTIONS[:2], CAPTIONS[0]]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_folder_makes_the_images_of_its_pipeline(kind, request):
    from diffusers import DDIMScheduler, DiffusionPipeline

    folder = request.getfixturevalue(f"{kind}_folder")
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = ImageNoise(0, [0, 1, 2], (4, 8, 8), "cpu")()
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "pt", "height": 16, "width": 16}
    expected = pipeline(PROMPTS, latents=noise, **options).images
    found = load(folder).sample(prompts=PROMPTS, steps=3, guidance=5.0)
    assert found.shape == (3, 3, 16, 16)
    torch.testing.assert_close(found / 2 + 0.5, expected, rtol=0, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_guidance_is_an_input_of_a_student_of_all_weights(full_run):
    generator = load(full_run)
    found = generator.sample(prompts=PROMPTS, steps=2, guidance=8.0, batch_size=2)
    text = generator.text_to_image.encoders.texts(PROMPTS)["text"]
    latents = generator.sample(3, steps=2, labels=Prompt(text, guidance=torch.full((3,), 7.0)))
    torch.testing.assert_close(found, generator.text_to_image.images(latents), rtol=0, atol=1e-5)
    assert (found - generator.sample(prompts=PROMPTS, steps=2, guidance=15.0)).abs().max() > 1e-5
    with pytest.raises(ValueError, match=r"give a number, such as guidance=8\.0"):
        generator.sample(prompts=PROMPTS)


def test_adapters(lora_run):
    generator = load(lora_run)
    found = generator.sample(prompts=PROMPTS)
    assert found.shape == (3, 3, 16, 16)
    assert torch.equal(found, generator.sample(3, prompts=PROMPTS, guidance=1))


def test_the_scale_of_the_data_is_that_of_the_latents(full_run):
    generator = load(full_run)
    before = generator.sample(prompts=PROMPTS, guidance=8.0)
    generator = load(full_run)
    generator.config["data"]["source"]["scale"] = 0.5
    after = generator.sample(prompts=PROMPTS, guidance=8.0)
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 2, "prompts": PROMPTS}, r"prompts must be n=2 texts; got 3"),
        ({"prompts": "a red cat"}, r"prompts must be a list of texts, such as \['a red cat'\]; got 'a red cat'"),
        ({"prompts": []}, r"prompts must be a list of texts"),
        ({"prompts": PROMPTS, "labels": Prompt(torch.zeros(3, 77, 32))}, "give prompts or labels, not both"),
        ({"n": 1, "guidance": 8.0}, "guidance: only with prompts"),
        ({}, "n is needed without prompts and labels"),
    ],
)
def test_senseless_requests_are_refused(asked, message, lora_run):
    with pytest.raises(ValueError, match=message):
        load(lora_run).sample(**asked)


@pytest.mark.parametrize(("classes", "message"), [(10, "takes classes: give labels"), (0, "neither text nor classes")])
def test_a_model_without_text_takes_no_prompts(classes, message):
    generator = Generator(torch.nn.Linear(1, 1), (1, 8, 8), None, classes)
    with pytest.raises(ValueError, match=message):
        generator.sample(prompts=PROMPTS)


def test_a_pipeline_that_is_gone_is_named(full_run, sd_folder, tmp_path):
    generator = load(full_run)
    assert generator.pipeline == str(sd_folder)
    generator.pipeline = str(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"is .*gone, which does not exist; set generator\.pipeline"):
        generator.sample(prompts=PROMPTS, guidance=8.0)
    generator.pipeline = str(shutil.copytree(sd_folder, tmp_path / "moved"))
    assert generator.sample(prompts=PROMPTS, guidance=8.0).shape == (3, 3, 16, 16)
