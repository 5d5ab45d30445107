"""diffusers' own pipeline makes of the exported folder the images that the student makes."""

from functools import partial

import diffusers
import pytest
import torch

from consistency_models.export import to_diffusers
from consistency_models.networks import DhariwalUNet, OpenAIUNet
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary
from consistency_models.sampling.generator import Generator
from consistency_models.sampling.samplers import Consistency

SIZES = {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1, "head_channels": 16}


def student(network=OpenAIUNet, scalings=Boundary, classes=0, **sizes):
    torch.manual_seed(0)
    model = Preconditioned(network(16, 3, classes, **{**SIZES, "attn_resolutions": (8,), **sizes}), scalings())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Generator(model.eval().requires_grad_(False), (3, 16, 16), partial(Consistency.for_steps), classes)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"classes": 4, "legacy_order": True},
        {"adaptive_scale": False, "attn_resolutions": (16,), "channel_mult": (1, 1, 2), "num_blocks": 2},
    ],
    ids=str,
)
def test_one_step_of_the_pipeline_is_one_call_of_the_student(sizes, tmp_path):
    generator = student(**sizes)
    model = generator.model
    to_diffusers(generator, tmp_path / "out")
    pipeline = diffusers.ConsistencyModelPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    noise, labels = torch.randn(2, 3, 16, 16), [1, 3] if model.network.num_classes else None
    got = pipeline(batch_size=2, latents=noise, class_labels=labels, num_inference_steps=1, output_type="pt").images
    onehot = torch.eye(4)[labels] if labels else None
    expected = model(80 * noise, 80.0, onehot).clamp(-1, 1) / 2 + 0.5
    assert (expected % 1).std() > 0.05  # not all of them clamped
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip", [True, False])
def test_the_pipeline_clamps_outputs_as_the_sampler_of_the_student(clip, tmp_path):
    generator = student()
    generator.make_sampler = partial(Consistency.for_steps, clip=clip)
    to_diffusers(generator, tmp_path / "out")
    scheduler = diffusers.ConsistencyModelPipeline.from_pretrained(tmp_path / "out").scheduler
    assert scheduler.config.clip_denoised is clip


@pytest.mark.parametrize(
    ("says", "changes"),
    [
        ("got DhariwalUNet with Boundary: train with network=openai_adm", {"network": DhariwalUNet}),
        ("got OpenAIUNet with EDM", {"scalings": EDM}),
        ("resblock_updown must be true", {"resblock_updown": False}),
        ("heads of .16, 32. channels", {"heads": 2, "attn_resolutions": (16, 8)}),
        ("noise_scale 1000 .* 1.0", {"noise_scale": 1.0}),
        ("a first level of 64", {"channel_mult": (2, 2)}),
    ],
)
def test_what_diffusers_has_no_form_for_is_refused(says, changes, tmp_path):
    with pytest.raises(ValueError, match=says):
        to_diffusers(student(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
