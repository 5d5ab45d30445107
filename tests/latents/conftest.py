"""Runs on latents with captions, with a tiny pipeline of Stable Diffusion as the teacher."""

import numpy as np
import pytest
from jobs import TINY, run
from PIL import Image

from consistency_models.errors import Exit

pytest.importorskip("peft")

CAPTIONS = ("a red cat", "a dog", "a bird", "a dog")
LORA = ("network=diffusers_lora", "network.lora.r=4", "network.lora.alpha=8")
LORA += ("model.target_ema=null", "model.w_embedding=null")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Four images with captions."""
    folder = tmp_path_factory.mktemp("captioned")
    for k, caption in enumerate(CAPTIONS):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="session")
def encoded(images, sd_folder, tmp_path_factory):
    from consistency_models.data.encode import encode

    out = tmp_path_factory.mktemp("encoded") / "sd"
    encode(sd_folder, images, out)
    return out


@pytest.fixture(scope="session")
def arguments(encoded, sd_folder):
    """`arguments(*more)`: the overrides of a short training."""

    def line(*more):
        return (
            "model=lcm",
            "data=latents",
            f"data.root={encoded}",
            "data.image_size=8",
            "data.batch_size=4",
            "teacher=diffusers",
            f"teacher.path={sd_folder}",
            "optimizer.lr=0.003",
            "ema.decays=[0.5]",
            *TINY,
            "trainer.max_steps=4",
            "trainer.accumulate_grad_batches=1",
            "callbacks.checkpoint.every_n_steps=2",
            *more,
        )

    return line


@pytest.fixture(scope="session")
def lora_run(arguments, tmp_path_factory):
    """A finished run that trained adapters."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    assert run(folder, *arguments(*LORA)) == Exit.DONE
    return folder


@pytest.fixture(scope="session")
def full_run(arguments, tmp_path_factory):
    """A finished run that trained all weights, with w as an input."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    assert run(folder, *arguments()) == Exit.DONE
    return folder
