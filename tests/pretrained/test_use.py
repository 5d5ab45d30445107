"""What a user does with an official checkpoint: distil it, start from it, score it, convert it."""

import json
import re
from functools import partial

import pytest
import torch
from hydra.errors import InstantiationException
from jobs import TINY, command, composed, config_of, run
from parity.golden import OURS
from PIL import Image
from pretrained import snapshots
from pretrained.test_load import KWARGS, precond, snapshot, song

import consistency_models
from consistency_models import pretrained, teachers
from consistency_models.app import build
from consistency_models.app.tasks import run_task
from consistency_models.errors import ConfigError, Exit
from consistency_models.export.__main__ import main as export
from consistency_models.files import sha256_of
from consistency_models.networks import OpenAIUNet
from consistency_models.pretrained import openai
from consistency_models.storage.checkpoints import CheckpointError, read

REFUSALS = (ConfigError, InstantiationException)  # Hydra's wrapping, which `report` takes off
SNAPSHOTS = sorted(OURS.glob("*/*snapshot*.pkl"))
EDM = OURS / "edm/edm_snapshot_song.pkl"
LIKE_EDM = (  # the network of that file, but for its augmentation labels
    *("network=ddpmpp", "network.model_channels=16", "network.channel_mult=[1,2]", "network.num_blocks=1"),
    *("network.channel_mult_emb=2", "network.attn_resolutions=[4]", "augment=none"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """data=…: 32 images of 8x8."""
    folder = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    for i, pixels in enumerate(torch.randint(0, 256, (32, 8, 8, 3), dtype=torch.uint8)):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / "ab"[i % 2] / f"{i}.png")
    return ("data=image_folder", f"data.root={folder}", "data.image_size=8", "data.batch_size=8", "features=identity")


LIKE_OPENAI = ("network=openai_adm", "network.model_channels=32", "network.channel_mult=[1,2]", "network.num_blocks=1")
LIKE_OPENAI += ("network.attn_resolutions=[4]", "network.head_channels=16")


@pytest.fixture
def openai_file(monkeypatch, tmp_path):
    """`openai_file(NAME)`: a file as OpenAI's, of a network of our own size."""
    sizes = {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}
    family = partial(OpenAIUNet, image_size=8, channels=3, head_channels=16, **sizes)
    monkeypatch.setitem(openai.FAMILIES, "tiny", family)

    def write(name):
        torch.manual_seed(0)
        weights = {key: value + 0.02 * torch.randn_like(value) for key, value in family().state_dict().items()}
        torch.save(weights, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def labelled(tmp_path):
    """A class-conditional snapshot, trained with label dropout."""
    return snapshot(tmp_path / "conditional.pkl", kwargs={"label_dropout": 0.1})


def convert(monkeypatch, path, out, code=Exit.DONE):
    """Write our own form of it, from the command line."""
    monkeypatch.setattr("sys.argv", ["export", str(path), str(out), "--format", "checkpoint"])
    assert export() == code


def teacher(path, *overrides, kind="edm"):
    """What build makes of teacher=KIND; `overrides` choose the data."""
    return teachers.build_teacher(
        config_of("unused", "model=cd", f"teacher={kind}", f"teacher.path={path}", *overrides)
    )


def test_distilled_from_it_and_started_from_it(images, tmp_path):
    arguments = ("model=cd", "teacher=edm", f"teacher.path={EDM}", "init=teacher", "trainer.max_steps=2", *LIKE_EDM)
    assert run(tmp_path, *arguments, *images, *TINY) == Exit.DONE
    kept = read(tmp_path / "checkpoints/last.ckpt")
    assert kept["teacher"] == {"path": str(EDM), "digest": pretrained.load(EDM).digest}
    weights = pretrained.load(EDM).model.network.state_dict()
    distance = max(
        (value - weights[name.removeprefix("network.")]).abs().max() for name, value in kept["model"].items()
    )
    assert 0 < distance < 0.01  # two steps away from where it started


def test_distilled_from_it_with_its_augmentation(images, tmp_path):
    arguments = ("model=cd", "teacher=edm", f"teacher.path={EDM}", "init=teacher", "trainer.max_steps=2", *LIKE_EDM)
    assert run(tmp_path, *arguments, "augment=edm", *images, *TINY) == Exit.DONE


def test_a_student_is_distilled_from_openai_s_file(images, openai_file, tmp_path):
    path, folder = openai_file("edm_tiny.pt"), tmp_path / "run"
    arguments = ("model=cd", "teacher=openai", f"teacher.path={path}", "init=teacher", "trainer.max_steps=2")
    assert run(folder, *arguments, *LIKE_OPENAI, *images, *TINY) == Exit.DONE
    assert read(folder / "checkpoints/last.ckpt")["teacher"] == {"path": str(path), "digest": sha256_of(path)}
    rows = (folder / "metrics.csv").read_text().splitlines()
    loss = [float(row.split(",")[rows[0].split(",").index("train/loss")] or "nan") for row in rows[1:]]
    assert any(value > 0 for value in loss)


@pytest.mark.parametrize(("name", "sampler", "nfe"), [("edm_tiny.pt", "Heun", 3), ("cd_tiny.pt", "Consistency", 2)])
def test_openai_s_file_is_scored(name, sampler, nfe, images, openai_file, tmp_path):
    path = openai_file(name)
    assert run_task(settings(tmp_path, path, "steps=[2]", *images)) == Exit.DONE
    written = json.loads((path.with_suffix("") / "evaluation/evaluation.json").read_text())
    assert written["digest"] == sha256_of(path)
    assert {(result["sampler"], result["nfe"]) for result in written["results"]} == {(sampler, nfe)}


@pytest.mark.parametrize("uncertainty", [True, False], ids=["edm2", "ect"])
def test_a_precond_is_a_teacher(uncertainty, images, tmp_path):
    path = precond(tmp_path / "a.pkl", uncertainty)
    ours = teacher(path, *images, "data.conditional=true", "data.num_classes=2")
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 5.0]), torch.eye(2)
    assert torch.equal(ours(x, sigma, labels), pretrained.load(path).model(x, sigma, labels))
    assert not torch.equal(ours(x, sigma, labels), ours(x, sigma, labels.flip(0)))


def test_a_student_starts_from_its_weights(images):
    config = config_of("unused", "init=pretrained", f"init.path={EDM}", *LIKE_EDM, *images)
    student, official = build.build_method(config).model.network, pretrained.load(EDM).model.network
    assert student.map_augment is None
    for name, value in student.state_dict().items():
        assert torch.equal(value, official.state_dict()[name]), name
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([-1.0, 0.5])
    torch.testing.assert_close(student.eval()(x, c_noise), official(x, c_noise))


@pytest.mark.parametrize("head", [0, 8])
def test_a_student_starts_from_edm2_with_or_without_its_head(head, images, tmp_path):
    path = precond(tmp_path / "a.pkl", uncertainty=True)
    like = ("network=edm2", "network.model_channels=16", "network.channel_mult=[1,2]", "network.num_blocks=1")
    like += ("network.attn_resolutions=[]", "network.head_channels=16", f"network.logvar_channels={head}")
    like += ("data.conditional=true", "data.num_classes=2", "augment=none")
    config = config_of("unused", "model=ect", "init=pretrained", f"init.path={path}", *images, *like)
    student, official = build.build_method(config).model.network, pretrained.load(path).model.network
    for name, value in student.state_dict().items():
        assert torch.equal(value, official.state_dict()[name]), name
    assert hasattr(student, "logvar_linear") == bool(head)


def test_a_student_of_another_shape_is_told_the_first_difference(images):
    config = config_of("unused", "init=pretrained", f"init.path={EDM}", *LIKE_EDM, *images, "network.model_channels=32")
    with pytest.raises(REFUSALS, match=r"map_layer0.weight is \(32, 16\) there, \(64, 32\) here"):
        build.build_method(config)


@pytest.mark.parametrize(
    ("says", "kind", "overrides"),
    [
        ("this one is EDMPrecond. Allowed: a file of kind ECMPrecond, Precond", "ect", ()),
        ("this one is EDMPrecond. Allowed: a file of kind OpenAI", "openai", ()),
        ("this one was made for 8. Allowed: a model of images of data.image_size=16", "edm", ("data.image_size=16",)),
        ("this one was made for 3. Allowed: a model of images of data.channels=1", "edm", ("data.channels=1",)),
        (
            "this one has 0, .* Allowed: a model of 2 classes, as the student",
            "edm",
            ("data.conditional=true", "data.num_classes=2"),
        ),
        ("teacher.guidance=2.0 is not allowed: .* Allowed: 1.0", "edm", ("teacher.guidance=2.0",)),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(says, kind, overrides, images):
    with pytest.raises(REFUSALS, match=says):
        teacher(EDM, *images, *overrides, kind=kind)


def test_a_conditional_teacher_of_an_unconditional_student_is_refused(images, labelled):
    with pytest.raises(ConfigError, match=r"this one has 2, .* Allowed: a model of 0 classes, as the student"):
        teacher(labelled, *images)


def test_a_conditional_teacher_is_guided(images, labelled):
    classes = ("data.conditional=true", "data.num_classes=2")
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 5.0]), torch.eye(2)
    plain, guided = teacher(labelled, *images, *classes), teacher(labelled, *images, *classes, "teacher.guidance=3.0")
    conditional, unconditional = plain(x, sigma, labels), plain(x, sigma)
    assert not torch.equal(conditional, unconditional)
    torch.testing.assert_close(guided(x, sigma, labels), 3 * conditional - 2 * unconditional)
    assert guided.origin == plain.origin


def test_both_calls_of_a_guided_teacher_are_counted(images, labelled, tmp_path):
    arguments = ("model=cd", "teacher=edm", f"teacher.path={labelled}", "teacher.guidance=2.0", "init=random")
    classes = ("data.conditional=true", "data.num_classes=2", "trainer.max_steps=1")
    assert run(tmp_path / "run", *arguments, *LIKE_EDM, *images, *classes, *TINY) == Exit.DONE
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["teacher_calls_per_image"] == 4  # Heun's two, each twice


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_it_samples_and_so_does_its_copy_bit_for_bit(path, tmp_path, monkeypatch):
    convert(monkeypatch, path, tmp_path / "out.ckpt")
    theirs, ours = consistency_models.load(path), consistency_models.load(tmp_path / "out.ckpt")
    consistency = pretrained.load(path).kind == "ECMPrecond"
    assert theirs.steps == ours.steps == ((1, 2) if consistency else (18,))
    images = theirs.sample(2, seed=1)
    assert images.isfinite().all()
    assert torch.equal(images, ours.sample(2, seed=1))
    x, sigma = torch.randn(2, 3, *theirs.shape[1:]), torch.tensor([0.01, 70.0])
    labels = torch.eye(theirs.num_classes)[[0, 1]] if theirs.num_classes else None
    assert torch.equal(ours.model(x, sigma, labels), pretrained.load(path).model(x, sigma, labels))


LAST = "model.dec.8x8_aux_conv"
OTHERS = {
    "VPPrecond": ({"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}, {}),
    "VEPrecond": ({"sigma_min": 0.02, "sigma_max": 100.0}, {}),
    "iDDPMPrecond": (
        {"C_1": 0.001, "C_2": 0.008, "M": 11},
        {
            "u": torch.tensor([*torch.linspace(4, -2, 11).exp(), 0.0]),
            f"{LAST}.weight": torch.ones(6, 8, 3, 3),
            f"{LAST}.bias": torch.ones(6),
        },
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_scalings_are_converted_to_the_last_bit(kind, tmp_path, monkeypatch):
    kwargs, weights = OTHERS[kind]
    path = snapshot(tmp_path / "other.pkl", class_name=kind, kwargs=kwargs, weights=weights)
    convert(monkeypatch, path, tmp_path / "out.ckpt")
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 7.0]), torch.eye(2)
    got = consistency_models.load(tmp_path / "out.ckpt").model(x, sigma, labels)
    assert torch.equal(got, pretrained.load(path).model(x, sigma, labels))


def test_what_is_no_checkpoint_is_not_converted(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.pkl").write_bytes(b"nothing")
    convert(monkeypatch, tmp_path / "a.pkl", tmp_path / "out.ckpt", Exit.NO_GOOD_CHECKPOINT)
    assert "a.pkl: expected" in capsys.readouterr().err
    assert not (tmp_path / "out.ckpt").exists()
    with pytest.raises(CheckpointError, match=r"a\.pkl"):
        consistency_models.load(tmp_path / "a.pkl")


def settings(folder, run, *overrides):
    """The resolved configuration of eval.py."""
    return composed("eval", f"paths.output={folder}", f"run={run}", "n=16", *overrides)


def test_it_is_scored(images, tmp_path):
    path = tmp_path / "official.pkl"
    path.write_bytes(EDM.read_bytes())
    assert run_task(settings(tmp_path, path, "steps=[1,2]", *images)) == Exit.DONE
    written = json.loads((tmp_path / "official/evaluation/evaluation.json").read_text())
    assert written["digest"] == pretrained.load(EDM).digest
    assert [(result["sampler"], result["nfe"]) for result in written["results"][::2]] == [("Heun", 1), ("Heun", 3)]


@pytest.mark.parametrize(
    ("says", "chosen"),
    [
        ("data=null is not allowed: .* names none. Allowed: a choice on the command line", ["features=identity"]),
        ("features=null is not allowed: .* names none. Allowed: a choice on the command line", ["data=digits"]),
        (
            r"these are \(1, 8, 8\) in .*Allowed: images of shape \(3, 8, 8\) in no classes",
            ["data=digits", "features=identity"],
        ),
    ],
)
def test_it_is_not_scored_against_other_images(says, chosen, tmp_path, capsys):
    assert run_task(settings(tmp_path, EDM, *chosen)) == Exit.BAD_INPUT
    assert re.search(says, capsys.readouterr().err)


def test_it_is_scored_from_the_command_line(tmp_path):
    kwargs = {**KWARGS, "img_resolution": 32, "label_dim": 0, "attn_resolutions": []}
    weights = song(img_resolution=32, label_dim=0, attn_resolutions=[]).state_dict()
    weights = {f"model.{name}": value for name, value in weights.items()}
    said = {"sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": float("inf")}
    module = snapshots.module("EDMPrecond", weights, kwargs, {"model": "SongUNet"}, **said)
    path = snapshots.dump({"ema": module}, tmp_path / "edm-cifar10.pkl")
    for i, pixels in enumerate(torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)):
        folder = tmp_path / "data" / ("test" if i >= 30 else "train") / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    arguments = (f"run={path}", "data=cifar10", f"data.root={tmp_path / 'data'}", "features=classifier", "n=16")
    small = ("steps=[1]", "features.extractor.steps=2", "features.extractor.batch_size=8", "device=cpu")
    code, output = command(tmp_path, "eval.py", *arguments, *small, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert code == Exit.DONE, output
    written = json.loads((tmp_path / "edm-cifar10/evaluation/evaluation.json").read_text())
    assert {result["features"] for result in written["results"]} == {"classifier"}
    assert all(result["metric"] in output for result in written["results"])
