"""References of more images than features are kept: one pass, a stated subset, the same for any number of processes."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.feature_set import FeatureSet, Moments
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.metrics import Agreement, EnergyDistance, FrechetDistance
from consistency_models.evaluation.real_features import merged, share_of, subset
from consistency_models.storage.cache import cache_folder


class Halved(nn.Module):
    """A space with a weight."""

    name, protocol = "halved", ""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, images):
        return self.factor * images.flatten(1)


def evaluate(data, points, batch_size=100):
    metrics = [FrechetDistance(), EnergyDistance()]
    return Evaluation(data, lambda _: Halved(), metrics, batch_size=batch_size, reference_points=points)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_one_pass_is_as_exact_as_two(shift, size):
    points = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 5) + shift
    moments = Moments()
    for rows in points.split(size):
        moments.add(rows)
    exact = points.double().numpy().astype(np.longdouble)
    centred = exact - exact.mean(0)
    mu, sigma = exact.mean(0), centred.T @ centred / (len(exact) - 1)
    scale = np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
    for found in (moments.statistics, FeatureSet(points).statistics):
        assert np.abs(found["mu"] - mu).max() <= 1e-13 * np.abs(exact).max()
        assert (np.abs(found["sigma"] - sigma) / scale).max() < 1e-10


def test_shares_of_several_processes_are_those_of_one(digit_set):
    space, images = Halved(), digit_set.images[:450]

    def features(batch):
        return space(to_float(batch))

    for points in (450, 100):
        whole, moments = merged([share_of(images, features, 64, points)])
        parts, other = merged([share_of(images, features, 64, points, rank, 9) for rank in range(9)])
        assert torch.equal(whole, parts)
        chosen = subset(450, points)
        assert torch.equal(whole, features(images if chosen is None else images[chosen]))
        assert (moments is None) == (other is None) == (points == 450)
    expected = FeatureSet(features(images)).statistics
    for found in (moments, other):
        assert found.n == 450
        for name in ("mu", "sigma"):
            np.testing.assert_allclose(found.statistics[name], expected[name], rtol=0, atol=1e-13)


def test_distances_of_moments_use_all_images_and_others_a_subset_with_its_own_name(digit_set, own_cache):
    some = to_float(digit_set.images[:200])
    everything, fewer = evaluate(digit_set, 2000), evaluate(digit_set, 300)
    full, scores = everything.scores(some, None, 1), fewer.scores(some, None, 1)
    assert [score.name for score in full] == ["fd200_halved_train_1step", "energy200_halved_train_1step"]
    assert [score.name for score in scores] == ["fd200_halved_train_1step", "energy200_halved_train300_1step"]
    assert scores[0].value == pytest.approx(full[0].value, rel=1e-9)
    chosen = subset(digit_set.n, 300)
    few = replace(digit_set, images=digit_set.images[chosen], labels=digit_set.labels[chosen])
    assert scores[1].value == evaluate(few, 300).scores(some, None, 1)[1].value
    assert torch.equal(fewer.reference.labels, few.labels)
    assert [score.name for score in fewer.floor(2)] == [
        "fd150_halved_train300_floor",
        "energy150_halved_train300_floor",
    ]
    assert fewer.floor(2)[1].value == evaluate(few, 300).floor(2)[1].value != everything.floor(2)[1].value
    assert fewer._score(Agreement(), 1.0, 9, 1).reference == "train"  # does not look at the reference


def test_features_of_a_subset_are_cached_beside_those_of_all(digit_set, own_cache):
    for points in (2000, 300, 300):
        evaluate(digit_set, points).reference  # noqa: B018
    assert len(list(cache_folder().glob("features-*.pt"))) == 2


def _process(rank, folder, data, expected, results):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    evaluation, again = evaluate(data, 300), evaluate(data, 300)
    seen, extract = [], evaluation.extract
    evaluation.extract = again.extract = lambda batch: seen.append(len(batch)) or extract(batch)
    evaluation.share_reference()
    evaluation.share_reference()
    results.put((rank, len(seen), rank or evaluation.reference.statistics["mu"] @ expected))
    again.share_reference()  # the features are in the cache
    results.put((rank, len(seen), 0.0))
    dist.destroy_process_group()


def test_two_processes_share_the_work(digit_set, own_cache, tmp_path):
    expected = evaluate(digit_set, 300).reference.statistics["mu"]
    for path in cache_folder().glob("features-*.pt"):
        path.unlink()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (tmp_path, digit_set, expected, results)
    processes = [context.Process(target=_process, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in range(4))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [each[:2] for each in found] == [(0, 9), (0, 9), (1, 9), (1, 9)]  # 18 batches, once
    assert max(each[2] for each in found[:2]) == pytest.approx(expected @ expected, rel=1e-12)
