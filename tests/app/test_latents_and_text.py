"""Latents with captions through the commands: every method that distils, validation, evaluation, what is refused."""

import csv
import io
import json
import shutil
import zipfile
from math import isfinite

import numpy as np
import pytest
import torch
from evals import evaluate
from jobs import TINY, config_of, run

from consistency_models import load
from consistency_models.app import build
from consistency_models.app.pipelines import with_pipeline
from consistency_models.app.plan import plan
from consistency_models.conditions import Prompt
from consistency_models.errors import ConfigError, Exit
from consistency_models.storage.checkpoints import read
from consistency_models.teachers import Guided

ODE = ("evaluation.ode_points=4", "evaluation.ode_steps=4")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """24 random latents with 5 captions, in the layout of consistency_models.data.encode."""
    root, draw = tmp_path_factory.mktemp("encoded"), np.random.default_rng(0)
    posterior = np.concatenate([draw.standard_normal((24, 4, 8, 8)), np.full((24, 4, 8, 8), 0.1)], 1)
    np.save(root / "latents.npy", posterior.astype(np.float16))
    np.save(root / "text.npy", draw.standard_normal((5, 77, 32)).astype(np.float16))
    np.save(root / "empty.npy", draw.standard_normal((77, 32)).astype(np.float16))
    np.save(root / "caption.npy", np.arange(24) % 5)
    (root / "meta.json").write_text(json.dumps({"scale": 1.0, "shift": 0.0, "classes": 0, "class_names": []}))
    return root


@pytest.fixture(scope="module")
def common(encoded, sd_folder):
    """`common(model)`: the arguments of a training of latents of the tiny pipeline."""

    def arguments(model, guidance=3):
        data = ("data=latents", f"data.root={encoded}", "data.image_size=8", "data.batch_size=4")
        teacher = ("teacher=diffusers", f"teacher.path={sd_folder}")
        fixed = () if guidance is None else (f"teacher.guidance={guidance}",)
        return (f"model={model}", *data, *teacher, *fixed, "network=diffusers", *TINY, "trainer.max_steps=2")

    return arguments


@pytest.fixture(scope="module")
def lcm(common, tmp_path_factory):
    """The folder of a run of model=lcm with validation."""
    folder = tmp_path_factory.mktemp("lcm")
    scored = ("callbacks.validation.every_n_steps=2", "evaluation.n=8", *ODE)
    arguments = [each for each in common("lcm", guidance=None) if each != "callbacks.validation=null"]
    assert run(folder, *arguments, *scored) == Exit.DONE
    return folder


TABLE = ("schedule=table", "schedule.steps=5", "preconditioning=lcm", "solver=euler", "sampler=lcm")
METHODS = {
    "cd": TABLE,
    "dcm": (*TABLE, "schedule.lowest=zero"),
    "cmt": TABLE,
    "mcm": ("schedule.spacing.sigma_max=14.6", "preconditioning=table", "curriculum.s0=8", "curriculum.s1=8"),
    "tract": (
        *("model.phases=[8,4]", "schedule.spacing.sigma_max=14.6", "schedule.spacing.sigma_min=0.03"),
        *("preconditioning=table", "weighting=uniform"),
    ),
    "ect": ("preconditioning=table", "init=pretrained"),
    "scd": (),
    "ayf": (),
    "meanflow": ("model.label_dropout=0.5", "model.omega=2.0", "init=pretrained"),
}
SMALL_EDM2 = "network.model_channels=16 network.channel_mult=[1] network.num_blocks=1 network.attn_resolutions=[]"
ODE_POINTS = {"n": 64, "batch_size": 8, "ode_points": 16}
"""What the validation of the published settings takes, because each point of the ODE takes 1,500 calls of the U-Net."""
OF_DATA = ("ect", "meanflow")
"""Methods without a teacher, which start with the weights of the folder."""


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", METHODS)
def test_a_step_of_every_method_that_distils_or_starts_with_the_folder(model, common, sd_folder, tmp_path):
    arguments = [*common(model), *METHODS[model]]
    if model in OF_DATA:
        arguments = [each for each in arguments if not each.startswith("teacher")]
        arguments += ["teacher=none", f"init.path={sd_folder}"]
    assert run(tmp_path, *arguments, "trainer.max_steps=1") == Exit.DONE
    (row,) = rows(tmp_path)
    assert isfinite(float(row["train/loss"]))  # scd subtracts the logarithm of its weight
    assert 0 < float(row["train/gradient_norm"]) < float("inf")


def test_the_student_starts_as_the_teacher(common, tmp_path):
    """Its layer of w starts at zero, and c_skip of LCM's boundary is 7e-6 at the lowest level of the grid."""
    config = with_pipeline(config_of(tmp_path, *common("lcm", guidance=None)))
    method = build.build_method(config)
    teacher, student = method._teacher[0], method.model
    assert isinstance(teacher, Guided)
    assert teacher.guidance is None
    text = Prompt(torch.randn(3, 77, 32), guidance=torch.tensor([5.0, 9.0, 15.0]), empty=torch.zeros(77, 32))
    x, sigma = torch.randn(3, 4, 8, 8), student.preconditioning.sigmas[[19, 499, 999]].float()
    with torch.no_grad():
        expected = teacher.model.eval()(x, sigma, text)
        torch.testing.assert_close(student.eval()(x, sigma, text), expected, rtol=1e-4, atol=1e-4)


def test_a_run_of_lcm(lcm):
    last = rows(lcm)[-1]
    assert float(last["val/ode_error_noise"]) > 0
    summary = json.loads((lcm / "summary.json").read_text())
    assert {"val/ode_error", "val/energy8_identity_train_1step"} <= summary["metrics"]["final"].keys()
    assert {float(row["train/teacher_calls_per_image"]) for row in rows(lcm)} == {2.0}
    config = read(lcm / "checkpoints/last.ckpt")["config"]
    assert config["network"]["config"]["block_out_channels"] == [16, 32]
    assert config["sampler"]["scalings"]["beta_schedule"] == "scaled_linear"


def test_it_is_loaded_without_the_folder_of_the_teacher(lcm):
    generator = load(lcm)
    text = Prompt(torch.randn(2, 77, 32), guidance=torch.tensor([7.0, 2.0]))
    images = generator.sample(2, steps=2, labels=text)
    assert images.shape == (2, 4, 8, 8)
    other = generator.sample(2, steps=2, labels=Prompt(text.text, guidance=torch.tensor([7.0, 9.0])))
    torch.testing.assert_close(other[0], images[0])
    with pytest.raises(ValueError, match="missing: guidance"):
        generator.sample(2, labels=Prompt(text.text))


def test_it_is_evaluated(lcm):
    assert evaluate(lcm, "steps=[1,2]", "n=8") == Exit.DONE
    found = json.loads((lcm / "evaluation/evaluation.json").read_text())
    names = {result["metric"] for result in found["results"]}
    assert "eval/ode_error_noise4_teacher_1step" in names
    (curve,) = found["ode_error"]
    assert curve["reference"] == "teacher"
    assert curve["sigmas"][-1] == pytest.approx(14.61, abs=0.01)


def test_a_folder_is_evaluated(sd_folder, encoded, tmp_path):
    """The folder itself as run=, with the data of the command line; results lie in a folder in it."""
    folder = tmp_path / "sd"
    for part in ("unet", "scheduler", "vae"):
        shutil.copytree(sd_folder / part, folder / part)
    shutil.copy(sd_folder / "model_index.json", folder)
    data = ("data=latents", f"data.root={encoded}", "data.image_size=8", "features=identity")
    assert evaluate(folder, *data, "steps=[3]", "n=8") == Exit.DONE
    found = json.loads((folder / "evaluation/evaluation.json").read_text())
    assert "eval/energy8_identity_train_3step" in {result["metric"] for result in found["results"]}


@pytest.mark.slow  # fake tensors are slow: fifteen seconds
def test_a_plan_of_a_network_with_text(common, tmp_path):
    config = config_of(tmp_path, *common("lcm", guidance=None))
    lines = plan(config).splitlines()
    student = build.build_method(with_pipeline(config)).model
    count = sum(parameter.numel() for parameter in student.parameters())
    assert f"trained parameters               {count:,}" in lines


def test_levels_beyond_the_table_are_refused(common, tmp_path):
    config = with_pipeline(config_of(tmp_path, *common("cd")))
    with pytest.raises(ConfigError, match=r"schedule\.sigma_min=0\.002 is not allowed.*0\.029168 to 14\.615"):
        build.build_method(config)


def test_pixels_of_a_folder_are_distilled(tmp_path):
    """A DDPM's folder as the teacher of a network of this suite, and of its own."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks)
    DDPMPipeline(unet, DDPMScheduler(beta_schedule="linear")).save_pretrained(tmp_path / "ddpm")
    common = ("data=digits", "data.conditional=false", "teacher=diffusers", f"teacher.path={tmp_path}/ddpm", *TINY)
    common = (*common, "data.batch_size=8", "trainer.max_steps=1", "features=identity")
    own = ("model=lcm", "model.w_embedding=null", "evaluation.steps=[1]")
    assert run(tmp_path / "own", *common, *own) == Exit.DONE
    assert load(tmp_path / "own").sample(2, steps=4).shape == (2, 1, 8, 8)
    ends = ("schedule.sigma_min=0.0101", "preconditioning.sigma_min=0.0101", "network.model_channels=8")
    assert run(tmp_path / "other", *common, "model=cd", "init=random", *ends) == Exit.DONE


@pytest.fixture(scope="module")
def folders(encoded, sd_folder, sdxl_folder, tmp_path_factory):
    """Latents and pipelines of Stable Diffusion, and of Stable Diffusion XL: wider text, pooled text and sizes."""
    root, draw = tmp_path_factory.mktemp("sdxl") / "encoded", np.random.default_rng(1)
    shutil.copytree(encoded, root)
    parts = {"text": (5, 77, 64), "empty": (77, 64), "pooled": (5, 24), "empty_pooled": (24,)}
    for name, shape in parts.items():
        np.save(root / f"{name}.npy", draw.standard_normal(shape).astype(np.float16))
    np.save(root / "sizes.npy", np.full((24, 6), 16, np.float32))
    return {"sd15": (encoded, sd_folder), "sdxl": (root, sdxl_folder)}


@pytest.mark.parametrize(
    "experiment", ["sd15_lcm_lora", "sdxl_cm_lora", pytest.param("sdxl_dcm_lora", marks=pytest.mark.slow)]
)
def test_published_settings_train(experiment, folders, tmp_path):
    """With the tiny pipelines, their latents and small batches."""
    encoded, pipeline = folders[experiment.partition("_")[0]]
    small = ("data.image_size=8", "data.batch_size=2", "trainer.max_steps=1", "schedule.steps=4")
    paths = (f"experiment={experiment}", f"data.root={encoded}", f"teacher.path={pipeline}")
    assert run(tmp_path, *paths, *TINY, *small) == Exit.DONE
    (row,) = rows(tmp_path)
    assert 0 < float(row["train/loss"]) < float("inf")
    content = read(tmp_path / "checkpoints/last.ckpt")
    assert list(content["ema"]) == ["0.95"]  # published trainings are short
    assert {key: content["config"]["evaluation"][key] for key in ODE_POINTS} == ODE_POINTS


@pytest.mark.parametrize("network", ["dit network.width=16 network.depth=1 network.heads=2", f"edm2 {SMALL_EDM2}"])
def test_latents_with_classes_train_the_networks_of_this_suite(network, tmp_path):
    """EDM2's zip, with validation."""
    draw = np.random.default_rng(0)
    names = [f"00000/img-mean-std-{k:08d}.npy" for k in range(12)]
    with zipfile.ZipFile(tmp_path / "edm2.zip", "w") as archive:
        for name in names:
            file = io.BytesIO()
            np.save(file, np.concatenate([draw.standard_normal((4, 8, 8)), np.full((4, 8, 8), 0.1)]).astype(np.float32))
            archive.writestr(name, file.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": [[name, k % 3] for k, name in enumerate(names)]}))
    data = (f"data.root={tmp_path}/edm2.zip", "data.image_size=8", "data.batch_size=4", "data.num_classes=3")
    data = ("data=latents", "data.conditional=true", "data.source.scale=1", "data.source.shift=0", *data)
    scored = ("callbacks.validation.every_n_steps=1", "evaluation.n=8", "evaluation.steps=[1]")
    tiny = [each for each in TINY if each != "callbacks.validation=null"]
    own = [f"network={part}" if part in ("dit", "edm2") else part for part in network.split()]
    assert run(tmp_path / "run", "model=ect", *own, *data, *tiny, *scored, "trainer.max_steps=1") == Exit.DONE
    (row,) = [row for row in rows(tmp_path / "run") if row.get("val/energy8_identity_train_1step")]
    assert isfinite(float(row["val/energy8_identity_train_1step"]))
    assert load(tmp_path / "run").sample(labels=[0, 2]).shape == (2, 4, 8, 8)
