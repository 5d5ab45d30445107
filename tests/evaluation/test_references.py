"""References: the data's own images, test images, and files; what is kept is what was computed."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from consistency_models.errors import DataError
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.features import Identity, to_float
from consistency_models.evaluation.metrics import EnergyDistance, FrechetDistance
from consistency_models.evaluation.references import Reference
from consistency_models.storage.cache import cache_folder


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "consistency_models"


@pytest.fixture
def data(digit_set):
    """The digits, of which the last hundred are kept apart for tests."""
    images, labels = digit_set.images, digit_set.labels
    test = replace(digit_set, images=images[-100:], labels=labels[-100:])
    return replace(digit_set, images=images[:-100], labels=labels[:-100], test=test)


class Doubled(torch.nn.Module):
    """A space with a weight, that counts how many images it has seen."""

    name, protocol = "doubled", "twice"

    def __init__(self, data=None, factor=2.0):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return self.factor * images.flatten(1)


def evaluate(data, reference="train", space=None, metrics=None):
    space = space or Identity(data)
    return Evaluation(data, lambda _: space, metrics or [FrechetDistance(), EnergyDistance()], reference)


def test_train_and_test_images(data):
    some = to_float(data.images[:200])
    train, test = (evaluate(data, reference).scores(some, None, 1)[0] for reference in ("train", "test"))
    assert (train.name, test.name) == ("fd200_identity_train_1step", "fd200_identity_test_1step")
    assert (train.reference_digest, test.reference_digest) == (data.digest, data.test.digest)
    other = evaluate(data.test).scores(some, None, 1)[0]
    assert test.value == other.value != train.value


def test_without_test_images_there_is_no_such_reference(digit_set):
    with pytest.raises(DataError, match=r"features.reference=test: digits has no separate test images: choose train"):
        Reference.of(digit_set, "test")


def test_statistics_in_the_form_of_edm(data, tmp_path):
    """Files with mu and sigma alone; metrics that need the images are left out, and there is no floor."""
    moments = evaluate(data).reference.statistics
    np.savez(tmp_path / "digits-8x8.npz", mu=moments["mu"], sigma=moments["sigma"])
    some = to_float(data.images[:200])
    found = evaluate(data, str(tmp_path / "digits-8x8.npz"))
    (score,) = found.scores(some, None, 1)
    assert score.name == "fd200_identity_digits-8x8_1step"
    assert score.value == evaluate(data).scores(some, None, 1)[0].value
    assert found.floor() == []


def test_images_and_statistics_in_the_form_of_openai(data, tmp_path):
    """Distances between moments take the file's, the others its images."""
    images = data.images[:300]
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy(), "mu_s": np.zeros(7), "sigma_s": np.eye(7)}
    np.savez(tmp_path / "images.npz", **arrays)
    moments = evaluate(data).reference.statistics
    np.savez(tmp_path / "both.npz", **arrays, **moments)
    np.savez(tmp_path / "other.npz", **arrays, mu=np.zeros(9), sigma=np.eye(9))  # of another space: not looked at
    some = to_float(data.images[300:500])
    subset = replace(data, images=images, labels=data.labels[:300])
    expected = {"train": evaluate(data).scores(some, None, 1), "subset": evaluate(subset).scores(some, None, 1)}
    for name, fd in (("images", "subset"), ("both", "train"), ("other", "subset")):
        scores = evaluate(data, str(tmp_path / f"{name}.npz")).scores(some, None, 1)
        assert [score.name for score in scores] == [f"fd200_identity_{name}_1step", f"energy200_identity_{name}_1step"]
        assert [score.value for score in scores] == [expected[fd][0].value, expected["subset"][1].value]
        assert scores[0].reference_digest == scores[1].reference_digest


WRONG = {
    "empty": ({}, "the file holds nothing"),
    "others": ({"x": np.zeros(3)}, "the file holds x"),
    "mu": ({"mu": np.zeros(3)}, "the file holds mu"),
    "shape": ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu is of shape \(3,\) and sigma of shape \(4, 4\)"),
    "rank": ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, r"mu is of shape \(3, 1\)"),
    "nan": ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
    "symmetry": ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
    "objects": ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "allow_pickle=False"),
    "text": ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "could not convert"),
    "float": ({"arr_0": np.zeros((4, 8, 8, 1))}, r"arr_0 is float64 of shape \(4, 8, 8, 1\)"),
    "one": ({"arr_0": np.zeros((1, 8, 8, 1), np.uint8)}, r"of shape \(1, 8, 8, 1\)"),
    "size": ({"arr_0": np.zeros((4, 9, 9, 3), np.uint8)}, r"the images have shape \(3, 9, 9\), the data \(1, 8, 8\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_holds_something_else_is_refused(case, digit_set, tmp_path):
    arrays, message = WRONG[case]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"features.reference={tmp_path}/a.npz: .*{message}.*: allowed are train, test"):
        Reference.of(digit_set, str(tmp_path / "a.npz"))


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "flipped", "array"])
def test_a_damaged_file_is_refused(damage, digit_set, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.arange(500.0), sigma=np.eye(500))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[1000] ^= 1
    changed = {"empty": b"", "text": b"mu: 0", "cut": content[:9000], "flipped": bytes(flipped)}
    path.write_bytes(changed.get(damage, content))
    if damage == "missing":
        path.unlink()
    if damage == "array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=f"features.reference={path}: "):
        Reference.of(digit_set, str(path))


def test_statistics_of_another_space_are_refused(data, tmp_path):
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    path = str(tmp_path / "inception.npz")
    with pytest.raises(DataError, match="inception holds mean and covariance of 2048 features; identity has 64"):
        evaluate(data, path).scores(to_float(data.images[:9]), None, 1)
    np.savez(tmp_path / "inception.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(DataError, match=r"the metrics \(energy\) must include one that needs only these"):
        evaluate(data, path, metrics=[EnergyDistance()]).scores(to_float(data.images[:9]), None, 1)


def test_features_are_computed_once_for_images_weights_and_preprocessing(data, own_cache):
    def reference(data=data, **space):
        made = Doubled(**space)
        return evaluate(data, space=made).reference, made.seen

    first, computed = reference()
    again, kept = reference()
    assert (computed, kept) == (len(data.images), 0)
    assert torch.equal(first.points, again.points)
    assert all(np.array_equal(first.statistics[name], again.statistics[name]) for name in ("mu", "sigma"))
    assert torch.equal(again.labels, data.labels)
    assert reference(factor=3.0)[1] == len(data.images)
    assert reference(data.test)[1] == 100
    Doubled.protocol, before = "thrice", Doubled.protocol
    assert reference()[1] == len(data.images)
    Doubled.protocol = before
    assert len(list(cache_folder().glob("features-*.pt"))) == 4


def test_what_is_kept_and_damaged_is_computed_again(data, own_cache, caplog):
    first = evaluate(data, space=Doubled()).reference
    (path,) = own_cache.glob("features-*.pt")
    path.write_bytes(path.read_bytes()[:-100])
    again = Doubled()
    assert torch.equal(evaluate(data, space=again).reference.points, first.points)
    assert again.seen == len(data.images)
    assert str(path) in caplog.text


def test_without_a_place_to_keep_them_features_are_computed_all_the_same(data, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(evaluate(data, space=Doubled()).reference) == len(data.images)
    assert "next run computes the result again" in caplog.text


def test_a_space_without_weights_keeps_nothing(data, own_cache):
    evaluate(data).scores(to_float(data.images[:9]), None, 1)
    assert not own_cache.exists()


def test_any_data_with_images_and_a_digest_will_do():
    images = torch.randn(50, 4, 1, 1)
    data = SimpleNamespace(name="points", images=images, labels=None, digest="a")
    assert Reference.of(data, "train").images is images
