"""Scores and their names, for every choice in conf/features, and the floor."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from consistency_models.errors import ConfigError
from consistency_models.evaluation import Evaluation, Score, combined
from consistency_models.evaluation.features import Identity, to_float
from consistency_models.evaluation.metrics import FrechetDistance, SlicedWasserstein

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "features").glob("*.yaml"))


def points(n, seed=0):
    images = torch.randn(n, 4, 1, 1, generator=torch.Generator().manual_seed(seed))
    return SimpleNamespace(name="points", images=images, labels=None, num_classes=0, digest=f"{n}-{seed}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_feature_space_scores_images_under_names_that_say_what_they_are(
    path, cache, digit_set, few_digits, weight_files
):
    config = OmegaConf.load(path)
    config.metrics = config.metrics[1:] if path.stem == "inception" else config.metrics  # FID: see test_inception
    trained = path.stem in ("classifier", "identity")
    if "weights" in config.extractor:
        config.extractor.weights = str(weight_files[config.extractor._target_.rpartition(".")[2]])
    data, n = (digit_set, 200) if trained else (few_digits, 8)
    evaluation = instantiate(config)(data)
    space = evaluation.extractor.name
    assert space.startswith(path.stem)
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images, labels = to_float(data.images[:n]), data.labels[:n]
    real, noisy = evaluation.scores(images, labels, 1), evaluation.scores(images + noise, labels, 2)
    metrics = [metric.name for metric in evaluation.metrics]
    assert [score.name for score in real] == [f"{name}{n}_{space}_train_1step" for name in metrics]
    assert [score.name for score in noisy] == [f"{name}{n}_{space}_train_2step" for name in metrics]
    floor = evaluation.floor(splits=2)
    assert [score.name for score in floor] == [f"{name}{len(data.images) // 2}_{space}_train_floor" for name in metrics]
    for metric, good, bad, least in zip(evaluation.metrics, real, noisy, floor):
        sign = 1 if metric.is_distance else -1
        if trained or metric.is_distance:
            assert sign * good.value < sign * bad.value
        if trained:
            assert sign * least.value < sign * bad.value
        assert least.spread >= 0
        assert good.spread is None
        assert good.is_distance == metric.is_distance
        assert good.reference_digest == data.digest
    unlabelled = [score.metric for score in evaluation.scores(images, None, 1)]
    assert unlabelled == [metric.name for metric in evaluation.metrics if not metric.needs_labels]


@pytest.mark.parametrize(("device", "largest"), [("cpu", 3), ("cuda", 8)])
def test_on_a_cpu_an_extractor_is_called_with_the_images_that_it_asks_for(device, largest):
    calls = []

    class Small(Identity):
        cpu_batch_size = 3

        def forward(self, images):
            calls.append(len(images))
            return super().forward(images)

    evaluation, images = Evaluation(points(8), Small, [FrechetDistance()]), points(8).images
    evaluation.extractor.eval()  # built on the CPU
    evaluation.device = torch.device(device)
    assert torch.equal(evaluation.extract(images), Identity(None)(images))
    assert (max(calls), sum(calls)) == (largest, 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_the_machine_does_not_have():
    with pytest.raises(ConfigError, match=r"features\.device=cuda is not allowed"):
        Evaluation(points(8), Identity, [FrechetDistance()], device="cuda")


def test_names():
    score = Score("fd", 1.0, 1797, "classifier", "train", "", 1)
    assert score.name == "fd1797_classifier_train_1step"


def test_numbers_do_not_depend_on_the_batch(classifier, digit_set):
    images = to_float(digit_set.images[:300])
    one, other = (
        Evaluation(digit_set, lambda data: classifier, [FrechetDistance()], batch_size=size).scores(images, None, 1)
        for size in (7, 64)
    )
    assert one[0].value == pytest.approx(other[0].value, rel=1e-6)


def test_uint8_images_are_scored_as_the_same_images_in_floats(digit_set):
    evaluation = Evaluation(digit_set, Identity, [FrechetDistance()])
    some = digit_set.images[:100]
    assert evaluation.scores(some, None, 1) == evaluation.scores(to_float(some), None, 1)
    assert evaluation.scores(digit_set.images, None, 1)[0].value == pytest.approx(0, abs=1e-4)


def test_the_bias_of_the_floor_falls_as_one_over_n():
    few, many = (Evaluation(points(n), Identity, [FrechetDistance()]).floor(splits=8)[0].value for n in (400, 3200))
    assert 5 < few / many < 12


def test_the_same_data_have_the_same_floor():
    first, second = (Evaluation(points(100), Identity, [FrechetDistance()]).floor() for _ in range(2))
    assert first == second


def test_a_floor_is_computed_once_for_each_data_set_metric_and_split(monkeypatch, tmp_path):
    def floor(n=100, splits=5, **settings):
        calls = []

        class Counted(SlicedWasserstein):
            def __call__(self, *sets):
                calls.append(sets)
                return super().__call__(*sets)

        return Evaluation(points(n), Identity, [Counted(**settings)]).floor(splits)[0].value, len(calls)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    value, calls = floor()
    assert calls == 5
    assert floor() == (value, 0)
    assert floor(n=101)[1] == floor(seed=1)[1] == floor(projections=7)[1] == 5
    assert floor(splits=6)[1] == 6


def test_a_metric_that_was_typed_at_a_prompt_has_a_floor(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    typed = type("Typed", (SlicedWasserstein,), {"__module__": "nowhere"})
    assert Evaluation(points(100), Identity, [typed()]).floor()[0].value > 0


def test_images_that_are_not_finite_score_nan():
    evaluation = Evaluation(points(100), Identity, [FrechetDistance()])
    images = points(50).images.clone()
    images[3, 1] = math.inf
    assert math.isnan(evaluation.scores(images, None, 1)[0].value)


def test_scores_of_several_sets_are_one_with_mean_spread_and_best():
    sets = [Score("fid", value, 50_000, "inception", "train", "", 1) for value in (3.0, 2.0, 4.0)]
    found = combined(sets)
    assert (found.value, found.spread, found.best) == (3.0, 1.0, 2.0)
    assert replace(found, value=3.0, spread=None, best=None) == sets[0]
    shares = [replace(score, metric="precision", is_distance=False) for score in sets]
    assert combined(shares).best == 4.0
    assert combined(sets[:1]) == sets[0]
    broken = combined([*sets, replace(sets[0], value=math.nan)])
    assert math.isnan(broken.value)
    assert broken.spread is broken.best is None


@pytest.mark.parametrize("steps", [(), (1, 2)])
def test_scores_of_different_things_are_not_combined(steps):
    with pytest.raises(ValueError, match="one or more of one name; got"):
        combined([Score("fid", 1.0, 10, "inception", "train", "", step) for step in steps])


def test_features_of_a_network_are_kept_in_half_the_space(classifier, digit_set):
    evaluation = Evaluation(digit_set, lambda data: classifier, [FrechetDistance()])
    with torch.autocast("cpu", torch.bfloat16):  # does not reach them
        found = evaluation.features(digit_set.images[:64]).points
    assert found.dtype == torch.float32
    assert torch.equal(found, evaluation.features(digit_set.images[:64]).points)
