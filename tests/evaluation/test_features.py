"""Feature spaces: what every extractor promises, and that the classifier learns, repeats itself and is kept."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from consistency_models.evaluation import dino, efficientnet, features, inception
from consistency_models.evaluation.features import Classifier, Identity, resized_to, to_bytes, to_float, to_rgb
from consistency_models.storage.cache import cache_folder

MODULES = (features, inception, dino, efficientnet)
EXTRACTORS = [each for m in MODULES for name in m.__all__ if isinstance(each := getattr(m, name), type)]
SIZES = {"Classifier": 64, "Identity": 64, "InceptionV3": 2048, "DINOv2": 128, "EfficientNetLite0": 1280}


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "consistency_models"


def weights(classifier):
    return torch.cat([value.flatten() for value in classifier.state_dict().values()])


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_extractors_see_one_image_at_a_time_and_leave_the_random_state_alone(extractor, cache, digit_set, weight_files):
    before = torch.get_rng_state()
    given = {"weights": weight_files[extractor.__name__]} if extractor.__name__ in weight_files else {}
    space = extractor(digit_set, **given)
    images = to_float(digit_set.images[:5])
    found = space(images)
    assert isinstance(space, nn.Module)
    assert found.shape == (5, SIZES[extractor.__name__])
    assert found.dtype == torch.float32
    assert found.std(0).mean() > 0  # it sees them
    torch.testing.assert_close(torch.cat([space(images[:3]), space(images[3:])]), found, rtol=1e-5, atol=1e-5)
    if "8 bits" in space.protocol:
        assert torch.equal(space(images + 1e-3), found)
    if hasattr(space, "logits"):
        assert space.logits(found.double()).shape[0] == 5
    assert not space.training
    assert not any(parameter.requires_grad for parameter in space.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_names_of_spaces_are_distinct(cache, digit_set, weight_files):
    names = {each.name for each in EXTRACTORS if hasattr(each, "name")}
    assert names == {"identity", "classifier", "inception", "efficientnet"}  # DINOv2's depends on its weights


def test_grey_images_become_rgb_and_others_are_refused():
    grey = torch.arange(8.0).view(2, 1, 2, 2)
    assert torch.equal(to_rgb(grey), grey.repeat(1, 3, 1, 1))
    assert to_rgb(to_rgb(grey)).shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match="grey or RGB"):
        to_rgb(torch.zeros(2, 2, 2, 2))


@pytest.mark.parametrize("size", [13, 64])
def test_images_are_resized_as_pillow_does(size):
    import numpy as np
    from PIL import Image

    images = torch.randint(256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    expected = torch.tensor(np.asarray(image)).permute(2, 0, 1).float()
    difference = (resized_to(size, images)[0] - expected).abs()
    assert difference.max() <= 1  # Pillow computes with whole numbers
    assert difference.mean() < 0.02


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
    probabilities = classifier.logits(classifier(to_float(digit_set.images))).softmax(1)
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
        patch.setattr(Classifier, "_trained", None)
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
    assert "classifier cannot be cached" in caplog.text


def test_the_cache_lies_where_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "consistency_models"


def test_classifier_needs_classes(digit_set):
    with pytest.raises(ValueError, match="digits has none: choose features=identity"):
        Classifier(replace(digit_set, labels=None, num_classes=0, class_names=()))
