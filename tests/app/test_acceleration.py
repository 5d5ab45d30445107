"""channels_last=auto and compile=auto: the choice, where it is stored, and that results differ by rounding only."""

import csv
import shutil

import pytest
import torch
from jobs import TINY, config_of, run
from torch.torch_version import TorchVersion

from consistency_models import load
from consistency_models.app import acceleration
from consistency_models.app.acceleration import warn_of_rounding, with_acceleration
from consistency_models.app.build import build_method
from consistency_models.errors import ConfigError, Exit
from consistency_models.export.weights import to_checkpoint
from consistency_models.networks.layout import differentiable_norms
from consistency_models.storage.checkpoints import read, write
from consistency_models.storage.loading import build_model

SMALL = ("data=digits", "trainer=cpu", "optimizer=adam", "network.model_channels=8", "data.batch_size=4")
CUDA = ("trainer.accelerator=cuda", "trainer.precision=bf16-mixed")
WIDE = ("network.model_channels=32", "network.num_blocks=1")
LONG = 10**9


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of four steps, with both settings auto."""
    folder = tmp_path_factory.mktemp("auto")
    assert run(folder, *SMALL, *TINY, "trainer.max_steps=4", "callbacks.checkpoint.every_n_steps=2") == Exit.DONE
    return folder


def is_channels_last(module):
    return any(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in module.parameters()
        if p.ndim == 4
    )


def test_flag_is_about_strides():
    assert is_channels_last(torch.nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last))
    assert not is_channels_last(torch.nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize(("version", "is_contiguous"), [("2.11.0+cu130", True), ("2.13.0", True), ("2.14.0", False)])
def test_norms_of_older_torch_are_differentiated_in_the_default_layout(version, is_contiguous, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    norm, x = torch.nn.GroupNorm(2, 8), torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with differentiable_norms():
        assert norm(x).is_contiguous() == is_contiguous
    assert not norm(x).is_contiguous()


@pytest.mark.parametrize(
    ("overrides", "steps", "layout", "compiled", "reason"),
    [
        ([], 1300, True, False, "compiling takes about"),
        ([], LONG, True, True, "compiling takes about"),
        (["model=dcm"], LONG, True, False, "batches of varying sizes"),
        (["network.dropout=0.1"], LONG, True, True, "compiling takes about"),
        (["network.num_blocks=8"], LONG, True, False, "weight tensors"),
        ([*CUDA, "data.batch_size=64"], LONG, False, True, "compiling takes about"),
        ([*CUDA, "trainer.precision=16-mixed"], 10**6, False, False, "compiling takes about"),
        ([*CUDA, "network.dropout=0.1"], LONG, False, False, "dropout masks"),
        (["network=openai_adm", *WIDE, *CUDA, "network.dropout=0.1"], LONG, False, False, "dropout masks"),
        ([*CUDA, "trainer.devices=auto"], LONG, False, False, "several processes"),
        (["trainer.accelerator=gpu"], LONG, False, False, "32-true on cuda"),
        (["trainer.accelerator=mps"], LONG, False, False, "on mps"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"], LONG, True, False, "several processes"),
        (["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"], LONG, False, False, "sharded networks"),
        (["network=mlp", "data=mixture", "~network.model_channels"], LONG, False, False, "such a network"),
    ],
)
def test_choice(overrides, steps, layout, compiled, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    overrides = [o for o in overrides if not o.startswith("~")]
    small = SMALL if "network=mlp" not in overrides else SMALL[1:2]
    config = config_of(tmp_path, *small, *overrides)
    chosen = with_acceleration(config, build_model(config), steps)
    assert (chosen["channels_last"], chosen["compile"]) == (layout, compiled)
    assert reason in acceleration.compilation(config, build_model(config), steps).reason


def test_transformers_keep_their_layout(tmp_path):
    config = config_of(tmp_path, "data=digits", "trainer=cpu", "network=dit")
    choice = acceleration.channels_last(config, build_model(config), LONG)
    assert not choice.value
    assert "few convolutions" in choice.reason


def test_compilation_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = config_of(tmp_path, *SMALL)
    choice = acceleration.compilation(config, build_model(config), LONG)
    assert not choice.value
    assert "no-such-compiler" in choice.reason
    with pytest.raises(ConfigError, match="compile=true is not allowed: there is no"):
        with_acceleration(config | {"compile": True}, build_model(config), LONG)


@pytest.mark.parametrize(
    ("lacks", "reason"),
    [("triton", "package triton"), ("gpu", "compute capability 7.0"), ("compiler", "gcc or clang"), (None, "")],
)
def test_compilation_on_cuda_needs_triton_a_new_gpu_and_a_compiler(lacks, reason, tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(acceleration, "find_spec", lambda name: None if name == lacks else name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1) if lacks == "gpu" else (9, 0))
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: None if lacks == "compiler" else name)
    config = config_of(tmp_path, *SMALL, *CUDA, "data.batch_size=64")
    choice = acceleration.compilation(config, build_model(config), LONG)
    assert choice.value is (lacks is None)
    assert reason in choice.reason
    if lacks:
        with pytest.raises(ConfigError, match=f"compile=true is not allowed: there is no .*{reason}"):
            with_acceleration(config | {"compile": True}, build_model(config), LONG)


@pytest.mark.parametrize(
    ("settings", "calls", "expected", "reason"),
    [
        ({}, 50_000, False, "compiling takes about"),
        ({}, LONG, True, "compiling takes about"),
        ({"device": "cuda:1"}, LONG, False, "on cuda"),
        ({"devices": 2}, LONG, False, "several processes"),
        ({"compile": True}, 2, True, ""),
        ({"compile": False}, LONG, False, ""),
    ],
)
def test_sampling_is_compiled_if_it_takes_many_calls(settings, calls, expected, reason, trained, caplog, monkeypatch):
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: f"/usr/bin/{name}")
    caplog.set_level("INFO")
    config = {"compile": "auto", "device": "cpu", "devices": 1, **settings}
    assert acceleration.compile_for(calls, config, load(trained)) is expected
    assert reason in caplog.text


def test_own_choices_and_those_of_the_resumed_run_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: f"/usr/bin/{name}")
    config = config_of(tmp_path, *SMALL, "channels_last=false", "compile=true")
    assert with_acceleration(config, None, LONG) == config
    config = config_of(tmp_path, *SMALL)
    chosen = with_acceleration(config, None, LONG, {"channels_last": False, "compile": False})
    assert chosen["channels_last"] is False
    assert chosen["compile"] is False


def test_a_compiled_run_that_is_resumed_elsewhere_follows_the_limits_there(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: f"/usr/bin/{name}")
    for blocks, is_compiled in ((1, True), (8, False)):
        config = config_of(tmp_path, *SMALL, f"network.num_blocks={blocks}")
        assert with_acceleration(config, build_model(config), 4, {"compile": True})["compile"] is is_compiled
    assert "weight tensors on cpu takes many minutes; the resumed run was compiled" in caplog.text


def test_a_run_stores_its_choices(trained):
    for stored in (read(trained / "checkpoints/last.ckpt")["config"], load(trained).config):
        assert stored["channels_last"] is True
        assert stored["compile"] is False
    assert "channels_last: true" in (trained / "config.yaml").read_text()


def test_load_follows_the_run(trained, tmp_path):
    generator = load(trained)
    images = generator.sample(3)
    assert is_channels_last(generator.model)
    to_checkpoint(generator, tmp_path / "export.ckpt")
    assert torch.equal(load(tmp_path / "export.ckpt").sample(3), images)
    content = read(trained / "checkpoints/last.ckpt")
    for layout, expected in ((False, False), (None, True)):  # of a file without the setting
        config = content["config"] | {"channels_last": layout}
        write(content | {"config": config if layout is not None else without(config)}, tmp_path / "other.ckpt")
        other = load(tmp_path / "other.ckpt")
        assert is_channels_last(other.model) == expected
        torch.testing.assert_close(other.sample(3), images, rtol=1e-4, atol=1e-5)


def without(config):
    return {key: value for key, value in config.items() if key != "channels_last"}


def losses(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return torch.tensor([float(row["train/loss"]) for row in csv.DictReader(file)])


def test_layouts_differ_by_rounding_also_when_a_resumed_run_changes_its_layout(trained, tmp_path):
    saved = ("callbacks.checkpoint.every_n_steps=2", "callbacks.checkpoint.keep_every=2")
    short = (*SMALL, *TINY, *saved, "trainer.max_steps=4")
    assert run(tmp_path / "plain", *short, "channels_last=false") == Exit.DONE
    torch.testing.assert_close(losses(tmp_path / "plain"), losses(trained), rtol=1e-5, atol=0)
    shutil.copytree(tmp_path / "plain", tmp_path / "changed")
    path = tmp_path / "changed/checkpoints/step_00000002.ckpt"
    assert run(tmp_path / "changed", *short, "channels_last=true", f"ckpt_path={path}") == Exit.DONE
    a, b = (read(tmp_path / name / "checkpoints/last.ckpt") for name in ("plain", "changed"))
    assert not is_channels_last(Weights(a))
    assert is_channels_last(Weights(b))
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, rtol=1e-3, atol=1e-6)


class Weights(torch.nn.ParameterList):
    """The weights of a checkpoint."""

    def __init__(self, content):
        super().__init__(content["model"].values())


@pytest.mark.parametrize(
    ("overrides", "gap"),
    [
        (["model=ect", "trainer.precision=bf16-mixed"], "1.7%"),
        (["model=ect", "trainer.precision=16-mixed"], None),  # eight times finer
        (["model=ect", "trainer.precision=32-true"], None),
        (["model=ect", "trainer.precision=bf16-mixed", "schedule.stages=4"], None),
        (["model=ict", "trainer.precision=bf16-mixed"], None),  # the recipe of digits ends at 41 levels
        (["model=ict", "trainer.precision=bf16-mixed", "recipe.s1=1280"], "0.92%"),
        (["model=teacher", "trainer.precision=bf16-mixed"], None),
        (["model=imf", "trainer.precision=bf16-mixed"], None),  # most pairs have one level
    ],
)
def test_rounding_that_hides_the_difference_of_the_levels_is_told(overrides, gap, tmp_path, caplog):
    config = config_of(tmp_path, *SMALL, *overrides)
    warn_of_rounding(config["trainer"]["precision"], build_method(config))
    told = [record.getMessage() for record in caplog.records if "apart" in record.getMessage()]
    assert bool(told) == (gap is not None)
    assert gap is None or f"levels of a step are {gap} apart; below 3.1%, more than half" in told[0]
