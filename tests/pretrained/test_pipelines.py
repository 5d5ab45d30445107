"""Folders of diffusers' pipelines: the same images as diffusers' own loops, and what is refused."""

import contextlib
import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import save_sd, scheduler

from consistency_models import load, pretrained
from consistency_models.conditions import Prompt
from consistency_models.errors import CheckpointError
from consistency_models.networks import UNet
from consistency_models.teachers import Guided, diffusers_teacher

WEIGHTS = "diffusion_pytorch_model.safetensors"
CIFAR10 = {  # google/ddpm-cifar10-32, unet config
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


@pytest.fixture(scope="module")
def ddpm_folder(tmp_path_factory):
    """A tiny DDPMPipeline with random weights in a folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(8, 3, 3, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, **blocks)
    folder = tmp_path_factory.mktemp("pipelines") / "ddpm"
    DDPMPipeline(unet, DDPMScheduler(beta_schedule="linear")).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(tmp_path, sd_folder):
    """A copy of the folder of Stable Diffusion, to be changed."""
    for part in ("unet", "scheduler"):
        shutil.copytree(sd_folder / part, tmp_path / "sd" / part)
    shutil.copy(sd_folder / "model_index.json", tmp_path / "sd")
    return tmp_path / "sd"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def prompts(n, width=32, **parts):
    generator = torch.Generator().manual_seed(1)
    text, empty = torch.randn(n, 77, width, generator=generator), torch.randn(77, width, generator=generator)
    return Prompt(text, empty=empty, **parts)


@torch.no_grad()
def ddim(folder, x, text, guidance, steps):
    """diffusers' own loop, with classifier-free guidance."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    plan = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    plan.set_timesteps(steps)
    empty = text.unconditional()
    for t in plan.timesteps:
        cond, uncond = (unet(x, t, encoder_hidden_states=each.text).sample for each in (text, empty))
        x = plan.step(uncond + guidance * (cond - uncond), t, x).prev_sample
    return x


@pytest.mark.parametrize(
    ("prediction", "spacing"), [("epsilon", "leading"), ("v_prediction", "trailing"), ("sample", "leading")]
)
def test_the_guided_teacher_follows_ddim(prediction, spacing, sd_folder, tmp_path):
    folder = sd_folder if prediction == "epsilon" else tmp_path / "sd"
    if prediction != "epsilon":
        for part in ("unet", "scheduler"):
            shutil.copytree(sd_folder / part, folder / part)
        shutil.copy(sd_folder / "model_index.json", folder)
        table = {"prediction_type": prediction, "timestep_spacing": spacing}
        change(folder / "scheduler/scheduler_config.json", **table)
    loaded, labels = pretrained.load(folder), prompts(2)
    teacher = diffusers_teacher(str(folder))
    assert teacher.origin["digest"] == loaded.digest
    assert not teacher.is_consistency_model
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    generator = load(folder)
    ours = generator.make_sampler(steps=10)(lambda x, sigma: Guided(teacher, 7.5)(x, sigma, labels), noise, None)
    expected = ddim(folder, noise, labels, 7.5, 10)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_a_folder_is_loaded_as_a_generator(sd_folder):
    generator, labels = load(sd_folder), prompts(2)
    assert (generator.shape, generator.steps, generator.clamp) == ((4, 8, 8), (50,), False)
    assert generator.origin["kind"] == "diffusers"
    images = generator.sample(2, steps=3, labels=labels)
    again = generator.sample(1, steps=3, labels=labels[1:], first=1)
    torch.testing.assert_close(images[1:], again)
    assert images.isfinite().all()
    with pytest.raises(ValueError, match="must be a Prompt"):
        generator.sample(2, steps=3)
    with pytest.raises(ValueError, match="2 prompts; got 1"):
        generator.sample(2, steps=3, labels=labels[1:])


def test_pixels_in_sub_folders_and_flat(ddpm_folder, tmp_path):
    from diffusers import DDIMPipeline, DDIMScheduler

    generator = load(ddpm_folder)
    assert (generator.shape, generator.clamp) == ((3, 8, 8), True)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = generator.make_sampler(steps=5)(generator.model, noise, None)
    pipeline = DDIMPipeline.from_pretrained(ddpm_folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.scheduler.set_timesteps(5)
    x = noise
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5 * x.abs().max().item())

    flat = tmp_path / "flat"  # as google/ddpm-cifar10-32, with the old names of attention layers and of keys
    flat.mkdir()
    shutil.copy(ddpm_folder / "model_index.json", flat)
    shutil.copy(ddpm_folder / "unet/config.json", flat)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(ddpm_folder / "unet" / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any(".query." in key for key in weights)
    save_file(weights, flat / WEIGHTS)
    table = json.loads((ddpm_folder / "scheduler/scheduler_config.json").read_text())
    table["timesteps"] = table.pop("num_train_timesteps")
    (flat / "scheduler_config.json").write_text(json.dumps(table | {"_class_name": "GaussianDDPMScheduler"}))
    other = load(flat)
    sigma = torch.tensor([1.0, 50.0])
    torch.testing.assert_close(other.model(noise, sigma), generator.model(noise, sigma), rtol=0, atol=0)


def test_sdxl(sdxl_folder):
    """The guided teacher; the empty prompt has zeros for both embeddings and the same sizes."""
    from diffusers import UNet2DConditionModel

    teacher = diffusers_teacher(str(sdxl_folder))
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    labels = prompts(2, 64, pooled=torch.randn(2, 24), sizes=sizes, empty_pooled=torch.zeros(24))
    k, x = torch.tensor([999, 19]), torch.randn(2, 4, 8, 8)
    sigma = teacher.preconditioning.sigmas[k].float()
    z = x * (1 + sigma.view(2, 1, 1, 1) ** 2).rsqrt()
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder, subfolder="unet").eval()
    with torch.no_grad():
        ours = Guided(teacher, 5.0)(x, sigma, labels)
        outputs = []
        for each in (labels, labels.unconditional()):
            added = {"text_embeds": each.pooled, "time_ids": sizes}
            outputs.append(unet(z, k, encoder_hidden_states=each.text, added_cond_kwargs=added).sample)
    cond, uncond = outputs
    expected = x - sigma.view(2, 1, 1, 1) * (uncond + 5 * (cond - uncond))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)  # σ is 14.6


def test_the_path_of_a_teacher_holds_in_every_working_directory(copied, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    monkeypatch.chdir(copied.parent)
    assert diffusers_teacher("sd").origin["path"] == diffusers_teacher("~/sd").origin["path"] == str(copied)


def test_the_size_of_the_published_teacher_of_cifar10():
    with torch.device("meta"):
        network = UNet(CIFAR10)
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert (network.image_size, network.channels) == (32, 3)


def test_shards_and_half_precision(copied):
    expected = pretrained.load(copied).model.state_dict()
    weights = load_file(copied / "unet" / WEIGHTS)
    (copied / "unet" / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, copied / "unet" / file)
    index = copied / "unet" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, own in parts.items() for name in own}}))
    found = pretrained.load(copied).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../../secret.safetensors")}))
    with pytest.raises(CheckpointError, match="files in this folder"):
        pretrained.load(copied)
    index.unlink()
    save_file(
        {name: value.half() for name, value in weights.items()},
        copied / "unet/diffusion_pytorch_model.fp16.safetensors",
    )
    half = pretrained.load(copied).model.state_dict()
    assert all(value.dtype == torch.float32 for value in half.values())


def truncate(folder):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")


def transformer(folder):
    (folder / "transformer").mkdir()


def vqvae(folder):
    (folder / "vqvae").mkdir()


def no_scheduler(folder):
    shutil.rmtree(folder / "scheduler")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, r"a pickle \(\*\.bin\), which is not read.*save_pretrained"),
        (truncate, "SafetensorError|incomplete"),
        (transformer, r"transformer \(SD3"),
        (vqvae, r"a VQ-VAE in vqvae/ \(LDM\)"),
        (no_scheduler, "scheduler/scheduler_config.json"),
        (lambda f: (f / "unet" / WEIGHTS).unlink(), f"unet/{WEIGHTS}; found no such file"),
        (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
        (
            lambda f: change(f / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
            "noise level is infinite",
        ),
        (
            lambda f: change(f / "scheduler/scheduler_config.json", trained_betas=[0.999] * 100),
            r"end at .* and inf: .*no signal",
        ),
        (lambda f: change(f / "scheduler/scheduler_config.json", trained_betas=[1e-9, 0.5]), r"end at 0\.0 and"),
        (
            lambda f: change(f / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerScheduler"),
            "flow matching",
        ),
        (lambda f: change(f / "scheduler/scheduler_config.json", prediction_type="flow_prediction"), "flow matching"),
        (lambda f: change(f / "scheduler/scheduler_config.json", beta_start="1"), "beta_start"),
        (lambda f: change(f / "scheduler/scheduler_config.json", num_train_timesteps=10**9), "num_train_timesteps"),
        (lambda f: change(f / "scheduler/scheduler_config.json", steps_offset="${oc.env:HOME}"), "offset"),
        (lambda f: change(f / "unet/config.json", _class_name="os.system"), "'os.system'; allowed are UNet2DModel"),
        (lambda f: change(f / "unet/config.json", act_fn="${oc.env:HOME}"), "numbers, names and lists"),
        (lambda f: change(f / "unet/config.json", act_fn={"_target_": "os.system"}), "numbers, names and lists"),
        (lambda f: change(f / "unet/config.json", layers_per_block=10**9), "blocks"),
        (lambda f: change(f / "unet/config.json", block_out_channels=[16, 10**6]), "of shape"),
        (lambda f: (f / "unet/config.json").write_text("[" * 100_000), r"unet/config\.json: expected a JSON file"),
        (lambda f: (f / "unet/config.json").write_text(" " * (5 << 20)), r"unet/config\.json: .*at most"),
        (lambda f: (f / "unet/config.json").write_text('{"_class'), r"unet/config\.json: .*; found JSONDecodeError"),
        (lambda f: (f / "unet/config.json").write_text("[1]"), r"unet/config\.json: .* object; found .* type list"),
    ],
)
def test_refused_folders(copied, spoil, message):
    spoil(copied)
    with pytest.raises(CheckpointError, match=message):
        pretrained.load_pipeline(copied)


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    10**6,
    10**12,
    1e308,
    float("inf"),
    float("nan"),
    "x",
    "",
    [],
    [0],
    [10**9] * 3,
    {},
    {"a": 1},
]


def test_any_value_of_a_configuration_is_taken_or_refused(copied):
    """Other values give `CheckpointError` or a model; no other exception, and no large memory."""
    draw, taken = random.Random(0), 0
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        original = (copied / name).read_text()
        keys = [key for key in json.loads(original) if key != "_use_default_values"]
        for key in keys:
            change(copied / name, **{key: draw.choice(VALUES)})
            with contextlib.suppress(CheckpointError):
                taken += pretrained.load_pipeline(copied).kind == "diffusers"
            (copied / name).write_text(original)
    assert 10 < taken < 60


def test_a_folder_with_an_lcm_scheduler_is_a_consistency_model(sd_folder, tmp_path):
    from diffusers import LCMScheduler

    for part in ("unet", "vae"):
        shutil.copytree(sd_folder / part, tmp_path / part)
    shutil.copy(sd_folder / "model_index.json", tmp_path)
    LCMScheduler.from_config(scheduler().config, original_inference_steps=50).save_pretrained(tmp_path / "scheduler")
    generator, labels = load(tmp_path), prompts(2)
    assert generator.steps == (4, 1, 2)
    assert generator.model.preconditioning.boundary == 10.0
    assert diffusers_teacher(str(tmp_path)).is_consistency_model
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    ours = generator.make_sampler(steps=1)(lambda x, sigma: generator.model(x, sigma, labels), noise, None)
    plan = LCMScheduler.from_pretrained(tmp_path / "scheduler")
    plan.set_timesteps(1)
    with torch.no_grad():
        output = generator.model.network(noise, plan.timesteps.float().expand(2), labels)
    expected = plan.step(output, plan.timesteps[0], noise).denoised
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_v_prediction_has_its_own_folder(tmp_path):
    """`save_sd` writes what a v-prediction folder looks like; the table says so."""
    folder = save_sd(tmp_path / "v", prediction_type="v_prediction")
    assert pretrained.read_pipeline(folder).table["prediction_type"] == "v_prediction"
