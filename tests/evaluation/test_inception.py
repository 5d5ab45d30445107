"""The Inception space: torch-fidelity's network through our file and preprocessing, and the numbers papers print."""

import numpy as np
import pytest
import torch

from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.feature_set import FeatureSet
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.inception import InceptionV3
from consistency_models.evaluation.metrics import FrechetDistance, InceptionScore, KernelDistance, Precision, Recall


@pytest.fixture(scope="module")
def space(weight_files):
    return InceptionV3(weights=weight_files["InceptionV3"])


@pytest.fixture(scope="module")
def photographs():
    return torch.randint(256, (10, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_features_and_logits_are_those_of_torch_fidelity(space, inception, photographs):
    features, logits = inception(photographs[:2])
    found = space(to_float(photographs[:2]))
    assert found.shape == (2, 2048)
    assert found.std() > 0.1  # the random weights do not hide the images
    assert torch.equal(found, features)
    torch.testing.assert_close(space.logits(found), logits)


def test_images_are_resized_as_tensorflow_1_does(space, photographs):
    """Pixel i of 299 lies at 32 i/299 of 32, between the neighbours below and above; nothing is smoothed."""
    seen = []
    layer = space.network.Conv2d_1a_3x3
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numpy()))
    space(to_float(photographs[:1, :, :, :20]))
    hook.remove()
    image = photographs[0, :, :, :20].double().numpy()
    for axis in (1, 2):
        size = image.shape[axis]
        position = np.arange(299) * size / 299
        below = position.astype(int)
        above, share = np.minimum(below + 1, size - 1), (position - below)[:, None] if axis == 1 else position - below
        low, high = image.take(below, axis), image.take(above, axis)
        image = low + (high - low) * share
    np.testing.assert_allclose(seen[0][0], (image - 128) / 128, atol=1e-5)


def test_the_numbers_of_papers_are_their_formulas(space, inception, photographs, few_digits, cache):
    """On few images the covariances are singular: tr (ΣΣ')^½ is then the sum of the singular values of A Bᵀ."""
    metrics = [FrechetDistance("fid"), KernelDistance("kid"), InceptionScore(), Precision(), Recall()]
    grey = photographs[:6, :1]
    scores = Evaluation(few_digits, lambda data: space, metrics, batch_size=8).scores(grey, None, 1)
    (x, logits), (y, _) = (inception(images.expand(-1, 3, -1, -1)) for images in (grey, few_digits.images))
    x, y, p = x.double().numpy(), y.double().numpy(), logits.double().softmax(1).numpy()
    a, b = ((each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (x, y))
    fid = np.square(x.mean(0) - y.mean(0)).sum() + (a**2).sum() + (b**2).sum()
    fid -= 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    draw, kid = np.random.RandomState(2020), []
    for _ in range(100):
        u, v = (each[draw.choice(len(each), 6, replace=False)] for each in (x, y))
        uu, vv, uv = ((one @ two.T / 2048 + 1) ** 3 for one, two in ((u, u), (v, v), (u, v)))
        kid.append((uu.sum() - uu.trace() + vv.sum() - vv.trace()) / 30 - 2 * uv.mean())
    distance = [np.linalg.norm(one[:, None] - two, axis=2) for one, two in ((x, y), (x, x), (y, y))]
    radii = [np.sort(each, axis=1)[:, 3] for each in distance[1:]]
    expected = {
        "fid6_inception_train_1step": pytest.approx(fid, rel=1e-4),
        "kid6_inception_train_1step": pytest.approx(np.mean(kid), rel=1e-5),
        "is6_inception_train_1step": pytest.approx(1),  # groups of one image
        "precision6_inception_train_1step": (distance[0] <= radii[1]).any(1).mean(),
        "recall6_inception_train_1step": (distance[0] <= radii[0][:, None]).any(0).mean(),
    }
    assert {score.name: score.value for score in scores} == expected
    two = InceptionScore(splits=2)(FeatureSet(torch.tensor(x), None, space), None)
    groups = (p[:3], p[3:])
    assert two == pytest.approx(np.mean([np.exp((g * np.log(g / g.mean(0))).sum(1).mean()) for g in groups]), rel=1e-5)


def test_other_images_than_grey_and_rgb_are_refused(space):
    with pytest.raises(ValueError, match=r"grey or RGB images \(B, 1 or 3, H, W\); got \(2, 4, 8, 8\)"):
        space(torch.zeros(2, 4, 8, 8))
