"""Images do not depend on batch size, order or place; loading a file runs nobody's code."""

import re

import pytest
import torch
from jobs import TINY, run

from consistency_models import pretrained
from consistency_models.errors import Exit
from consistency_models.storage import loading
from consistency_models.storage.checkpoints import CheckpointError, read, write


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    arguments = ("data=digits", "network.model_channels=8", "data.batch_size=8", "trainer.max_steps=2", *TINY)
    assert run(folder, *arguments) == Exit.DONE
    return folder


def test_images_do_not_depend_on_the_batch(trained):
    generator = loading.load(trained)
    for steps in (1, 3):
        whole = generator.sample(20, steps=steps, batch_size=20)
        torch.testing.assert_close(generator.sample(20, steps=steps, batch_size=7), whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(generator.sample(5, steps=steps, first=10), whole[10:15], rtol=0, atol=1e-5)
    assert whole.shape == (20, 1, 8, 8)
    assert whole.abs().max() <= 1


def test_images_depend_on_seed_and_label(trained):
    generator = loading.load(trained)
    assert not torch.equal(generator.sample(2, seed=1), generator.sample(2, seed=2))
    assert not torch.equal(generator.sample(2, labels=[3, 3]), generator.sample(2, labels=[4, 4]))
    assert torch.equal(generator.sample(12), generator.sample(12, labels=[*range(10), 0, 1]))  # classes take turns


def test_weights_are_chosen_by_name(trained):
    average, model = loading.load(trained), loading.load(trained, weights="model")
    assert (average.weights, model.weights) == ("0.995", "model")
    assert not torch.equal(average.sample(1), model.sample(1))
    assert loading.load(trained, weights=0.995).weights == "0.995"  # as it is typed on a command line
    with pytest.raises(ValueError, match=r"weights='0\.5': .* has \['model', '0\.995'\]"):
        loading.load(trained, weights="0.5")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"origin": "x"}, "a mapping origin"),
        ({"ema": ...}, "found ema is"),
        ({"config": ..., "model": ...}, "found a file without config, model"),
    ],
)
def test_a_file_without_a_part_is_refused(trained, tmp_path, change, told):
    content = read(trained / "checkpoints/last.ckpt") | change
    write({key: value for key, value in content.items() if value is not ...}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=told):
        loading.load(tmp_path / "a.ckpt")


def test_a_teacher_that_cannot_be_looked_at_is_not_needed(trained, tmp_path):
    """For instance in a folder of another user; here its name is too long, and the home is of nobody."""
    for path in ("/" + "x" * 5000, "~nobody_of_this_name/teacher.pkl"):
        content = read(trained / "checkpoints/last.ckpt")
        content["config"]["teacher"] = {"path": path}
        write(content, tmp_path / "a.ckpt")
        assert loading.load(tmp_path / "a.ckpt").sample(1).shape == (1, 1, 8, 8)


def test_a_path_in_the_home_folder(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.parent))
    assert loading.load(f"~/{trained.name}").weights == "0.995"
    with pytest.raises(CheckpointError, match="SHA-256 at the end"):
        loading.load(f"~/{trained.name}/config.yaml")
    with pytest.raises(CheckpointError, match=str(trained)):
        pretrained.load(f"~/{trained.name}/config.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n, steps and batch_size must be at least 1"),
        ({"n": 1, "steps": 0}, "n, steps and batch_size must be at least 1"),
        ({"n": 2, "labels": [1]}, "labels must be 2 whole numbers from 0 to 9"),
        ({"n": 1, "labels": [10]}, "labels must be 1 whole numbers from 0 to 9"),
        ({"n": 1, "labels": ["three"]}, "labels must be 1 whole numbers from 0 to 9; got \\['three'\\]"),
        ({"n": 1, "labels": [0.5]}, "labels must be 1 whole numbers"),
        ({"n": 1, "labels": torch.eye(10).long()[:1]}, "labels must be 1 whole numbers"),
        ({"n": 1, "labels": 3}, "labels must be 1 whole numbers"),
        ({"n": 1, "batch_size": 0}, "n, steps and batch_size must be at least 1"),
    ],
)
def test_senseless_requests_are_refused(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        loading.load(trained).sample(**arguments)


def test_half_precision_is_that_of_the_network_only(trained):
    exact, half = loading.load(trained), loading.load(trained, precision="bf16-mixed")
    found = []
    half.model.network.register_forward_hook(
        lambda network, given, output: found.append((given[0].dtype, output.dtype))
    )
    images, expected = half.sample(4, steps=2), exact.sample(4, steps=2)
    assert set(found) == {(torch.float32, torch.bfloat16)}
    assert images.dtype == torch.float32
    assert 0 < (images - expected).abs().max() < 2**-7
    x, sigma = 0.5 * torch.randn(4, 1, 8, 8), torch.full((4,), 0.5)
    whole, error = exact.denoise(x, sigma, labels=torch.eye(10)[:4]), half.denoise(x, sigma, labels=torch.eye(10)[:4])
    assert 0 < (error - whole).abs().max() < 2**-7
    with pytest.raises(ValueError, match="precision='half': use 32-true, bf16-mixed or 16-mixed"):
        loading.load(trained, precision="half")


POISON = (
    "os.system",
    "consistency_models.storage.checkpoints.os.system",
    "torch.nn.Linear",
    "consistency_models.files.write_atomically",  # of this package, and writes files
    "consistency_models.storage.loading.instantiate",
    "${oc.env:HOME}",
    None,
)


@pytest.mark.parametrize("target", POISON)
@pytest.mark.parametrize("part", ["network", "preconditioning", "sampler", "data", "features"])
def test_a_file_cannot_ask_for_other_code(trained, tmp_path, target, part, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSISTENCY_MODELS_TRUST", "consistency_models")  # does not open it to more of itself
    content = read(trained / "checkpoints/last.ckpt")
    content["config"][part] = {"_target_": target, "command": "touch EXPLODED"}
    write(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=re.escape(f"{part} asks for {target}")):
        loading.load(tmp_path / "bad.ckpt")
    assert not (tmp_path / "EXPLODED").exists()


def test_a_file_cannot_have_a_target_made_up_while_it_is_read(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = read(trained / "checkpoints/last.ckpt")
    made_up = "{_target_:consistency_models.app.folder.RunFolder,path:EXPLODED}"
    content["config"]["network"]["dropout"] = f"${{oc.create:{made_up}}}"
    write(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"plain values, without \$\{; found network with one"):
        loading.load(tmp_path / "bad.ckpt")
    assert not (tmp_path / "EXPLODED").exists()


def test_a_file_may_ask_for_what_its_user_trusts(trained, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text(
        "from consistency_models.networks.song import SongUNet\n\n\nclass Mine(SongUNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    content = read(trained / "checkpoints/last.ckpt")
    content["config"]["network"]["_target_"] = "my_package.Mine"
    write(content, tmp_path / "mine.ckpt")
    with pytest.raises(CheckpointError, match="CONSISTENCY_MODELS_TRUST=my_package"):
        loading.load(tmp_path / "mine.ckpt")
    monkeypatch.setenv("CONSISTENCY_MODELS_TRUST", "my_package")
    assert torch.equal(loading.load(tmp_path / "mine.ckpt").sample(1), loading.load(trained).sample(1))
