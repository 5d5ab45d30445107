"""What is exported makes the images that it was exported from."""

import json
import os
import re

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from jobs import ROOT, TINY, run
from parity.golden import OURS
from safetensors.torch import load_file, save_file
from storage.test_loading import POISON

import consistency_models
from consistency_models import errors, export
from consistency_models.errors import Exit
from consistency_models.export import __main__ as command
from consistency_models.export import hub
from consistency_models.export.onnx import OneStep
from consistency_models.storage import loading
from consistency_models.storage.checkpoints import CheckpointError

NETWORKS = {
    "small": ("data=digits", "network.model_channels=8", "network.channel_mult=[1]"),
    "mlp": ("data=mixture",),
    "two_times": ("model=meanflow", "data=mixture"),
    "ncsnpp": ("network=ncsnpp", "network.model_channels=16", "network.channel_mult=[1,2]", "network.num_blocks=1"),
    "adm": (
        *("network=adm", "network.model_channels=32", "network.channel_mult=[1,2]", "network.num_blocks=1"),
        *("network.attn_resolutions=[4]", "network.head_channels=16"),
    ),
}


def trained(folder, network):
    """A run of two steps."""
    assert run(folder, "data.batch_size=8", "trainer.max_steps=2", *NETWORKS[network], *TINY) == Exit.DONE
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("digits"), "small")


def exported(monkeypatch, *arguments):
    """The exit code of the command line."""
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    return command.main()


def shaken(generator):
    """With weights that make images: those of a network that has hardly been trained end in zeros."""
    torch.manual_seed(0)
    for parameter in generator.model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return generator


def assert_onnx_agrees(generator, path):
    session = onnxruntime.InferenceSession(path)
    names = ["noise", "labels"][: 1 + bool(generator.num_classes)]
    assert [given.name for given in session.get_inputs()] == names
    assert [given.shape[0] for given in session.get_inputs()] == ["batch"] * len(names)
    one_step = OneStep(generator)
    for batch in (1, 3):
        noise = torch.randn(batch, *generator.shape)
        labels = [torch.arange(batch) % generator.num_classes] if generator.num_classes else []
        expected = one_step(noise, *labels)
        (got,) = session.run(None, dict(zip(names, (noise.numpy(), *(given.numpy() for given in labels)))))
        assert expected.std() > 0.01
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_one_step_is_what_sampling_does(digits):
    generator = shaken(consistency_models.load(digits))
    noise = torch.stack(
        [consistency_models.sampling.generator.ImageNoise(5, [k], generator.shape, "cpu")()[0] for k in (0, 1)]
    )
    torch.testing.assert_close(OneStep(generator)(noise, torch.tensor([0, 1])), generator.sample(2, steps=1, seed=5))


@pytest.mark.parametrize(
    "network",
    ["small", "mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adm", "ncsnpp"))],
)
def test_onnx_makes_the_same_images(network, tmp_path):
    generator = shaken(consistency_models.load(trained(tmp_path, network)))
    export.to_onnx(generator, tmp_path / "model.onnx")
    assert_onnx_agrees(generator, tmp_path / "model.onnx")


def test_onnx_of_an_official_checkpoint(tmp_path):
    generator = consistency_models.load(OURS / "edm/edm_snapshot_song.pkl")
    export.to_checkpoint(generator, tmp_path / "converted.ckpt")
    export.to_onnx(consistency_models.load(tmp_path / "converted.ckpt"), tmp_path / "model.onnx")
    assert_onnx_agrees(generator, tmp_path / "model.onnx")


@pytest.mark.parametrize(("form", "name"), [("safetensors", "a.safetensors"), ("hub", "a"), ("checkpoint", "a.ckpt")])
@pytest.mark.parametrize("weights", ["0.995", "model"])
def test_what_is_read_back_makes_the_same_images(digits, form, name, weights, tmp_path, monkeypatch):
    out = tmp_path / "new" / name
    assert exported(monkeypatch, f"run={digits}", out, "--format", form, "--weights", weights) == Exit.DONE
    before, after = consistency_models.load(digits, weights=weights), consistency_models.load(out)
    assert after.steps == before.steps
    for steps in (1, 2):
        assert torch.equal(
            after.sample(3, steps=steps, labels=[3, 1, 4]), before.sample(3, steps=steps, labels=[3, 1, 4])
        )
    assert after.origin["digest"] != before.origin["digest"]
    again = consistency_models.load(out)
    assert (again.origin, again.config) == (after.origin, after.config)


def test_nothing_of_the_machine_is_exported(digits, tmp_path):
    export.to_hub(consistency_models.load(digits), tmp_path / "hub")
    for path in (tmp_path / "hub").iterdir():
        for place in (digits, ROOT, tmp_path):
            assert str(place).encode() not in path.read_bytes(), path


def test_the_card_says_what_was_measured_of_these_weights(digits, tmp_path):
    generator = consistency_models.load(digits)
    name, value = "eval/fd1797_classifier_train_1step", 7.8125
    result = {"metric": name, "value": value, "n": 1797, "steps": 1}
    broken = {**result, "metric": "eval/precision", "value": None}
    content = {"digest": generator.origin["digest"], "weights": "0.995", "results": [result, broken]}
    (digits / "evaluation").mkdir()
    (digits / "evaluation/evaluation.json").write_text(json.dumps(content))
    assert hub.measured(consistency_models.load(digits, weights="model")) == {}
    export.to_hub(generator, tmp_path / "my-digits", license="mit")
    _, front, body = (tmp_path / "my-digits/README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front)
    assert (said["license"], said["library_name"]) == ("mit", "consistency-models")
    assert {"consistency-models", "ict", "digits"} <= set(said["tags"])
    (index,) = said["model-index"]
    assert index["name"] == "my-digits"
    (entry,) = index["results"]
    assert [(each["name"], each["value"]) for each in entry["metrics"]] == [(name, value)]
    assert f"| {name} | 7.812 |" in body
    assert generator.origin["digest"] in body
    assert load_file(tmp_path / "my-digits/model.safetensors").keys() == generator.model.state_dict().keys()
    assert json.loads((tmp_path / "my-digits/config.json").read_text())["config"]["network"]["model_channels"] == 8
    code = body.split("```python\n")[1].split("```")[0].replace('"my-digits"', repr(str(tmp_path / "my-digits")))
    names = {}
    exec(code, names)
    assert torch.equal(names["images"], generator.sample(16, seed=0))


def test_the_licence_of_official_weights_is_not_lost_on_the_way(tmp_path):
    path = OURS / "edm/edm_snapshot_song.pkl"
    export.to_checkpoint(consistency_models.load(path), tmp_path / "a.ckpt")
    export.to_safetensors(consistency_models.load(tmp_path / "a.ckpt"), tmp_path / "a.safetensors")
    export.to_hub(consistency_models.load(tmp_path / "a.safetensors"), tmp_path / "hub")
    assert "license: cc-by-nc-sa-4.0" in (tmp_path / "hub/README.md").read_text()


def header(generator, **changes):
    said = export.weights.description(generator)
    return {loading.HEADER: json.dumps({**said, **changes})}


@pytest.mark.parametrize("kind", ["nothing", "no header", "another schema", "poison", "cut off"])
def test_another_safetensors_file_is_refused(kind, digits, tmp_path):
    generator, path = consistency_models.load(digits), tmp_path / "bad.safetensors"
    state = {name: value.contiguous() for name, value in generator.model.state_dict().items()}
    poisoned = {**generator.config, "network": {"_target_": POISON[0]}}
    headers = {
        "no header": {},
        "another schema": header(generator, schema=2),
        "poison": header(generator, config=poisoned),
    }
    save_file(state, path, headers.get(kind, header(generator)))
    if kind in ("nothing", "cut off"):
        path.write_bytes(path.read_bytes()[: -1 if kind == "cut off" else 0])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: expected"):
        consistency_models.load(path)


@pytest.mark.parametrize(
    ("says", "code", "arguments"),
    [
        ("missing.ckpt: expected a file", Exit.NO_GOOD_CHECKPOINT, ("missing.ckpt", "out")),
        ("with --format hub", Exit.BAD_INPUT, ("RUN", "out", "--license", "mit")),
        ("OpenAIUNet .* got SongUNet", Exit.BAD_INPUT, ("RUN", "out", "--format", "diffusers")),
        ("has \\['model', '0.995'\\]", Exit.BAD_INPUT, ("RUN", "out", "--weights", "0.5")),
        ("OUT=. is not allowed. Allowed: a file", Exit.BAD_INPUT, ("RUN", ".")),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(says, code, arguments, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exported(monkeypatch, *(digits if word == "RUN" else word for word in arguments)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^error: .*{says}", line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", command.FORMATS)
def test_a_missing_library_is_told_with_the_command_that_installs_it(form, digits, tmp_path, monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(errors, "import_module", missing)
    code = exported(monkeypatch, digits, tmp_path / "out", "--format", form)
    if form == "checkpoint":  # needs none
        assert code == Exit.DONE
        return
    assert code == Exit.BAD_INPUT
    assert 'is not installed: pip install -e ".[export' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("form", "existing"), [("hub", "out/README.md"), ("safetensors", "out")])
def test_an_export_replaces_files_when_asked(form, existing, digits, tmp_path, monkeypatch, capsys):
    file = tmp_path / existing
    file.parent.mkdir(exist_ok=True)
    file.write_text("of the user")
    assert exported(monkeypatch, digits, tmp_path / "out", "--format", form) == Exit.BAD_INPUT
    assert "Or add --overwrite" in capsys.readouterr().err
    assert file.read_text() == "of the user"
    assert exported(monkeypatch, digits, tmp_path / "out", "--format", form, "--overwrite") == Exit.DONE
    assert file.read_bytes() != b"of the user"


@pytest.mark.parametrize(
    ("form", "kind"), [("hub", "file"), ("safetensors", "folder"), ("safetensors", "pipe"), ("checkpoint", "pipe")]
)
def test_an_export_replaces_only_its_own_kind(form, kind, digits, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    {"file": out.touch, "folder": out.mkdir, "pipe": lambda: os.mkfifo(out)}[kind]()
    assert exported(monkeypatch, digits, out, "--format", form, "--overwrite") == Exit.BAD_INPUT
    assert f"Allowed: a {'folder' if form == 'hub' else 'file'} with --format {form}" in capsys.readouterr().err
    assert (out.is_file(), out.is_dir(), out.is_fifo()) == tuple(kind == each for each in ("file", "folder", "pipe"))


def test_the_target_of_a_link_is_replaced(digits, tmp_path, monkeypatch):
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    assert exported(monkeypatch, digits, tmp_path / "link", "--format", "safetensors", "--overwrite") == Exit.DONE
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_size > 0


def test_no_checkpoint_is_replaced(digits, tmp_path, monkeypatch, capsys):
    source = digits / "checkpoints/last.ckpt"
    before = source.read_bytes()
    monkeypatch.setattr("sys.argv", ["export", str(digits), str(source)])
    assert command.main() == Exit.BAD_INPUT
    assert "it would replace a checkpoint" in capsys.readouterr().err
    assert source.read_bytes() == before
