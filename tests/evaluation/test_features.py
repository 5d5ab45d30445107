"""Feature spaces: what every extractor promises, and that the classifier learns, repeats itself and is kept."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from consistency_models.evaluation import features
from consistency_models.evaluation.features import Classifier, Identity, cache_folder, to_bytes, to_float

EXTRACTORS = [each for name in features.__all__ if isinstance(each := getattr(features, name), type)]


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "consistency_models"


def weights(classifier):
    return torch.cat([value.flatten() for value in classifier.state_dict().values()])


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_extractors_see_one_image_at_a_time_and_leave_the_random_state_alone(extractor, cache, digit_set):
    before = torch.get_rng_state()
    space = extractor(digit_set)
    images = to_float(digit_set.images[:7])
    found = space(images)
    assert isinstance(space, nn.Module)
    assert space.name == extractor.__name__.lower()
    assert found.shape == (7, 64)
    torch.testing.assert_close(torch.cat([space(images[:3]), space(images[3:])]), found)
    assert not any(parameter.requires_grad for parameter in space.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_bytes_and_floats_are_inverse_on_all_values_of_a_pixel():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_float(values)), values)
    assert (to_float(values)[0], to_float(values)[-1]) == (-1, 1)
    assert torch.equal(to_bytes(torch.tensor([-7.0, 7.0])), torch.tensor([0, 255], dtype=torch.uint8))


def test_identity_hands_on_the_values():
    images = torch.randn(3, 2, 4, 4)
    assert torch.equal(Identity(None)(images), images.view(3, 32))


def test_classifier_learns_digits(classifier, digit_set):
    assert classifier.held_out_accuracy > 0.97
    probabilities = classifier.classify(classifier(to_float(digit_set.images)))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(probabilities)))
    assert (probabilities.argmax(1) == digit_set.labels).float().mean() > 0.97


@pytest.mark.parametrize("size", [1, 5, 17, 64])
def test_classifier_takes_any_square_and_few_images(own_cache, digit_set, size):
    few = replace(digit_set, images=digit_set.images[:3, :, :1, :1].expand(3, 2, size, size), labels=torch.arange(3))
    assert Classifier(few, steps=3)(torch.zeros(5, 2, size, size)).shape == (5, 64)


def test_classifier_depends_on_its_seed_alone(own_cache, digit_set, monkeypatch):
    first = weights(Classifier(digit_set, steps=3))
    torch.manual_seed(12345)
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "other"))
    with torch.inference_mode():
        assert torch.equal(weights(Classifier(digit_set, steps=3)), first)
    assert not torch.equal(weights(Classifier(digit_set, steps=3, seed=1)), first)


def test_classifier_is_trained_once_for_each_data_set_and_setting(own_cache, digit_set, monkeypatch):
    first = weights(Classifier(digit_set, steps=3))
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "_train", None)
        assert torch.equal(weights(Classifier(digit_set, steps=3)), first)
    Classifier(digit_set, steps=4)
    Classifier(replace(digit_set, images=digit_set.images.flip(3)), steps=3)
    assert len(list(cache_folder().iterdir())) == 3


def test_a_damaged_file_is_replaced(own_cache, digit_set, caplog):
    first = weights(Classifier(digit_set, steps=3))
    (path,) = own_cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(weights(Classifier(digit_set, steps=3)), first)
    assert str(path) in caplog.text
    assert len(path.read_bytes()) == len(whole)


def test_without_a_place_to_keep_it_the_classifier_is_trained_all_the_same(tmp_path, digit_set, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Classifier(digit_set, steps=3).held_out_accuracy >= 0
    assert "trained again by the next run" in caplog.text


def test_the_cache_lies_where_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "consistency_models"


def test_classifier_needs_classes(digit_set):
    with pytest.raises(ValueError, match="digits has none: choose features=identity"):
        Classifier(replace(digit_set, labels=None, num_classes=0))
