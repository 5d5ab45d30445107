"""A tiny text-to-image model on captioned digits: trained, distilled, exported, and run by diffusers. No download.

    python examples/captioned_digits.py FOLDER            # about twenty minutes on one core
    python examples/captioned_digits.py FOLDER --quick    # two minutes, for a test: too short for good images

1. An AutoencoderKL is trained on the digits of scikit-learn, and a text encoder is drawn at random.
2. `consistency_models.data.encode` encodes the digits with the captions "a zero" … "a nine".
3. `train.py model=teacher` trains the U-Net of a StableDiffusionPipeline.
4. `train.py model=lcm` distils the teacher with guidance 3.
5. `consistency_models.export` writes the student as a pipeline, and StableDiffusionPipeline samples from it.

FOLDER gets the pipelines teacher/ and student/, samples.png, and results.json: the share of images of the class that
was asked for, the Fréchet distance of pixels to the data, and the latent ODE error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = [f"a {name}" for name in NAMES]
GUIDANCE = 3.0
ROOT = Path(__file__).resolve().parents[1]


def images() -> tuple[Tensor, Tensor]:
    """The digits as RGB, (1797, 3, 8, 8) uint8, and their classes."""
    from consistency_models.data import digits

    data = digits()
    return data.images.expand(-1, 3, -1, -1).contiguous(), data.labels


def write_images(folder: Path) -> None:
    """Write a PNG and a text file for each digit."""
    from PIL import Image

    folder.mkdir(parents=True)
    for k, (pixels, label) in enumerate(zip(*images())):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{k:04d}.png")
        (folder / f"{k:04d}.txt").write_text(CAPTIONS[label])


def trained_vae(steps: int) -> torch.nn.Module:
    """An autoencoder without downsampling: one block of 16 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(16,), latent_channels=4, norm_num_groups=8, sample_size=8)
    optimizer, pixels = torch.optim.AdamW(vae.parameters(), lr=3e-3), images()[0].float() / 127.5 - 1
    for _ in range(steps):
        x = pixels[torch.randint(len(pixels), (64,))]
        posterior = vae.encode(x).latent_dist
        loss = (vae.decode(posterior.sample()).sample - x).square().mean() + 1e-4 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scale = 1 / vae.encode(pixels).latent_dist.sample().std().item()
    vae.register_to_config(scaling_factor=scale)
    print(f"autoencoder: mean squared error {loss.item():.4f}, scaling factor {scale:.3f}")
    return vae.eval()


def write_pipeline(folder: Path, vae_steps: int) -> None:
    """Write a StableDiffusionPipeline with an untrained U-Net, a random text encoder, and a tokenizer of bytes."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    vae = trained_vae(vae_steps)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=CLIPTokenizer(
            str(folder / "tokenizer/vocab.json"), str(folder / "tokenizer/merges.txt"), model_max_length=77
        ),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def command(*arguments: object) -> None:
    """Run a command of this project and print it."""
    line = [str(argument) for argument in arguments]
    print("python", shlex.join(line), flush=True)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, *line], check=True, cwd=ROOT, env=environment)


def scores(found: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of images of the class that was asked for, and Fréchet distance of pixels; images in [-1, 1]."""
    from consistency_models.data import digits
    from consistency_models.evaluation.feature_set import FeatureSet
    from consistency_models.evaluation.features import Classifier, to_float
    from consistency_models.evaluation.metrics import FrechetDistance

    data, grey = digits(), found.mean(1, keepdim=True)
    classifier = Classifier(data)
    share = (classifier.logits(classifier(grey)).argmax(1) == labels).float().mean().item()
    real = FeatureSet(to_float(data.images).flatten(1))
    return {"class": share, "frechet": FrechetDistance()(FeatureSet(grey.flatten(1)), real)}


@torch.no_grad()
def sampled(pipeline: object, steps: int, guidance: float, n: int) -> tuple[Tensor, Tensor]:
    """Images of a pipeline in [-1, 1], the ten classes in turns, and their classes."""
    labels, found = torch.arange(n) % 10, []
    noise = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for rows in torch.arange(n).split(100):
        prompts = [CAPTIONS[label] for label in labels[rows]]
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
        generator = torch.Generator().manual_seed(1)
        result = pipeline(prompts, height=8, width=8, latents=noise[rows], generator=generator, **options)
        found.append(result.images)
    return 2 * torch.cat(found) - 1, labels


@torch.no_grad()
def ode_error(student: Path | None, folder: Path, n: int) -> float:
    """Mean squared difference of one-step latents from the ends of the guided teacher in 50 steps, from equal noise."""
    from consistency_models import load
    from consistency_models.data import latents
    from consistency_models.noise.discrete import Discrete
    from consistency_models.sampling.table import LCM
    from consistency_models.teachers import Guided, diffusers_teacher

    prompts = latents(folder / "latents").prompts[:n]
    teacher = load(folder / "teacher")
    table = teacher.config["preconditioning"]
    scalings = Discrete(**{key: value for key, value in table.items() if key != "_target_"} | {"boundary": 10.0})
    if student is None:  # the weights of the teacher in the student's formula
        one_step = load(folder / "teacher")
        one_step.model.preconditioning = scalings
        ends = one_step.sample(n, labels=prompts, sampler=LCM(steps=1, scalings=scalings))
    else:
        ends = load(student).sample(n, steps=1, labels=prompts)
    teacher.model = Guided(diffusers_teacher(str(folder / "teacher")), GUIDANCE)
    return (ends - teacher.sample(n, steps=50, labels=prompts)).square().mean().item()


def results(folder: Path, n: int) -> dict[str, object]:
    """Scores of teacher and student in 1, 2, 4 and 8 steps, and a picture."""
    from diffusers import LCMScheduler, StableDiffusionPipeline

    from consistency_models.evaluation.grids import save_comparison

    found: dict[str, object] = {}
    pictures = {}
    for name, place, guidance in (
        ("teacher, DDIM", "teacher", GUIDANCE),
        ("teacher's weights, LCMScheduler", "teacher", 1.0),
        ("student", "student", 1.0),
    ):
        pipeline = StableDiffusionPipeline.from_pretrained(folder / place, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        if "LCMScheduler" in name:
            pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
        for steps in (1, 2, 4, 8, *([50] if "DDIM" in name else [])):
            made, labels = sampled(pipeline, steps, guidance, n)
            found[f"{name}, {steps} steps"] = scores(made, labels)
            if steps in (1, 4, 50):
                pictures[f"{name}, {steps} {'step' if steps == 1 else 'steps'}"] = made[:20].mean(1, keepdim=True)
    title = "a zero … a nine: each column has one caption and one noise"
    save_comparison(folder / "samples.png", pictures, columns=10, title=title, names=NAMES * 2)
    run = folder / "distillation"
    found["latent ODE error"] = {"before": ode_error(None, folder, 100), "student": ode_error(run, folder, 100)}
    return found


def main() -> None:
    """Run all five steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--quick", action="store_true", help="few steps: everything runs, the images are noise")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} exists: name a new folder")
    if find_spec("diffusers") is None:
        parser.error('diffusers is not installed: pip install -e ".[latent]"')
    folder, started = given.folder.resolve(), time.perf_counter()
    torch.set_num_threads(1)
    vae_steps, teacher_steps, student_steps, n = (40, 100, 50, 100) if given.quick else (400, 3000, 1500, 500)
    write_images(folder / "images")
    write_pipeline(folder / "teacher", vae_steps)
    command("-m", "consistency_models.data.encode", folder / "teacher", folder / "images", folder / "latents")
    shared = ("data=latents", f"data.root={folder / 'latents'}", "data.image_size=8", "trainer=cpu", "logger=csv")
    shared += ("callbacks.samples=null", "callbacks.validation=null", "callbacks.progress=null")
    shared += ("trainer.accumulate_grad_batches=1", "network=diffusers")
    training = folder / "training"
    command(
        *("train.py", "model=teacher", *shared, "preconditioning=table", "weighting=snr", "sampler=ddim"),
        *("schedule=table", "schedule.steps=1000", "schedule.lowest=zero", "init=pretrained"),
        *(f"init.path={folder / 'teacher'}", "data.caption_dropout=0.1", "optimizer=adamw", "optimizer.lr=2e-3"),
        *("data.batch_size=32", f"trainer.max_steps={teacher_steps}", "ema.decays=[0.995]"),
        *("evaluation.steps=[50]", f"hydra.run.dir={training}"),
    )
    from consistency_models import load

    load(training).model.network.unet.save_pretrained(folder / "teacher/unet")
    command(
        *("train.py", "model=lcm", *shared, "teacher=diffusers", f"teacher.path={folder / 'teacher'}"),
        *(f"teacher.guidance={GUIDANCE}", "model.w_embedding=null", "model.guidance_w=null", "optimizer.lr=5e-4"),
        *("data.batch_size=16", f"trainer.max_steps={student_steps}", "ema.decays=[0.95]"),
        f"hydra.run.dir={folder / 'distillation'}",
    )
    student = folder / "student"
    command("-m", "consistency_models.export", folder / "distillation", student, "--format", "diffusers")
    found = results(folder, n)
    minutes = (time.perf_counter() - started) / 60
    (folder / "results.json").write_text(json.dumps(found | {"minutes": round(minutes, 1)}, indent=1))
    print(json.dumps(found, indent=1), f"\n{minutes:.1f} minutes; look at {folder / 'samples.png'}")


if __name__ == "__main__":
    main()
