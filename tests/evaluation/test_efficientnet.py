"""EfficientNet-Lite0: its real weights tell real images from bad ones."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_sample_images

from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.efficientnet import EfficientNetLite0
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.metrics import FrechetDistance, KernelDistance, Precision, Recall

METRICS = [FrechetDistance(), KernelDistance(), Precision(), Recall()]


@pytest.fixture(scope="module")
def space():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def patches(digit_set):
    """32x32 pieces of two photographs, half of them for reference."""
    images = [torch.tensor(image[:416, :640]).permute(2, 0, 1) for image in load_sample_images().images]
    pieces = torch.cat([i.unfold(1, 32, 32).unfold(2, 32, 32).reshape(3, -1, 32, 32).transpose(0, 1) for i in images])
    pieces = pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))].contiguous()[:48]
    real = replace(digit_set, name="patches", images=pieces[:24], labels=None, num_classes=0, class_names=())
    return real, to_float(pieces[24:])


def test_it_knows_what_is_on_a_photograph(space):
    """scikit-learn's two: a temple in China and a flower, which are ImageNet's palace (698) and daisy (985)."""
    china, flower = (torch.tensor(image).permute(2, 0, 1)[None] for image in load_sample_images().images)
    top = [space.logits(space(to_float(image))).topk(5).indices[0].tolist() for image in (china, flower)]
    assert 698 in top[0]
    assert top[1][0] == 985


def test_distances_grow_with_noise_and_do_not_depend_on_the_batch(space, patches, cache):
    real, others = patches
    noise = torch.randn(others.shape, generator=torch.Generator().manual_seed(1))
    small, large = (Evaluation(real, lambda data: space, METRICS, batch_size=size) for size in (7, 64))
    clean, noisy = ([score.value for score in large.scores(each, None, 1)] for each in (others, others + noise))
    for better, worse, metric in zip(clean, noisy, METRICS):
        assert (better < worse) == metric.is_distance
    again = [score.value for score in small.scores(others, None, 1)]
    assert again[0] == pytest.approx(clean[0], rel=1e-5)  # the covariances of 24 images are singular
    assert again[1:] == pytest.approx(clean[1:], rel=1e-6)
    found = small.features(real.images).points  # the reference's own were kept
    torch.testing.assert_close(found, large.reference.points, rtol=1e-5, atol=1e-5)
