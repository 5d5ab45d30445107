"""Mixtures of Gaussians: what follows from theory for any of them; golden numbers are in parity/."""

import pytest
import torch

from consistency_models.data import GaussianMixture, Mixture, Slot, StepSampler
from consistency_models.random import BatchRandom

MIXTURES = [GaussianMixture.ring(), GaussianMixture.ring(3), GaussianMixture.random(5, 4), GaussianMixture.random(1, 2)]


def each_mixture(test):
    return pytest.mark.parametrize("mixture", MIXTURES, ids=["ring8", "ring3", "random5", "random1"])(test)


def points(mixture, n, generator=None):
    generator = generator or torch.Generator().manual_seed(0)
    component = mixture.component(torch.rand(n, generator=generator, dtype=torch.float64))
    noise = torch.randn(n, mixture.dimension, generator=generator, dtype=torch.float64)
    return mixture.sample(component, noise), component


@each_mixture
def test_mean_is_zero_and_std_is_a_half(mixture):
    x, _ = points(mixture, 400_000)
    assert mixture.std == pytest.approx(0.5, abs=1e-12)
    assert x.square().mean().sqrt() == pytest.approx(0.5, rel=0.01)
    assert (mixture.weights @ mixture.means).abs().max() < 1e-12


@each_mixture
def test_components_have_their_weights(mixture):
    _, component = points(mixture, 100_000)
    share = component.bincount(minlength=len(mixture.weights)) / 100_000
    torch.testing.assert_close(share.double(), mixture.weights, rtol=0, atol=0.006)


def test_the_ring_of_eight_is_the_one_described():
    ring = GaussianMixture.ring()
    torch.testing.assert_close(ring.weights, torch.arange(1, 9).double() / 36)
    assert ring.stds[1].item() == pytest.approx(2 * ring.stds[0].item())
    sides = (ring.means - ring.means.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(sides, sides[:1].expand(8))  # a regular octagon …
    radius = sides[0] / (2 * torch.sin(torch.tensor(torch.pi / 8, dtype=torch.float64)))
    assert ring.stds[0].item() == pytest.approx(0.06 * radius.item())  # … and widths in proportion


@each_mixture
@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_score_is_the_gradient_of_the_log_density(mixture, sigma):
    x = points(mixture, 20)[0] * (1 + sigma)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(mixture.score(x, sigma), gradient)


@each_mixture
@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_denoiser_follows_from_the_score(mixture, sigma):  # Tweedie: E[x_0 | x] = x + σ² ∇ log p_σ(x)
    x = points(mixture, 20)[0] * (1 + sigma)
    torch.testing.assert_close(mixture.denoised(x, sigma), x + sigma**2 * mixture.score(x, sigma))


@each_mixture
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_denoiser_beats_every_other_denoiser(mixture, sigma):
    x_0, _ = points(mixture, 20_000)
    x = x_0 + sigma * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best = mixture.denoised(x, sigma)

    def error(denoised):
        return (denoised - x_0).square().mean()

    assert error(best) < min(error(0.9 * best), error(1.1 * best), error(x), error(best + 0.05))


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 1.0, 80.0, 1e4])
def test_safe_in_float32_at_every_level(sigma):
    mixture = GaussianMixture.random(16)
    x_0 = points(mixture, 200)[0]
    x = x_0 + sigma * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for function in (mixture.denoised, mixture.score, mixture.log_density):
        exact, single = function(x, sigma), function(x.float(), sigma)
        assert single.dtype == torch.float32
        assert exact.isfinite().all()
        torch.testing.assert_close(single.double(), exact, rtol=2e-4, atol=2e-4)


def test_far_from_every_component_the_nearest_in_units_of_its_width_takes_all():
    mixture = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    assert mixture.denoised(torch.tensor([[300.0]]), 0.01).isfinite().all()
    assert mixture.log_density(torch.tensor([[300.0]]), 0.01).isfinite().all()


@each_mixture
def test_labels_leave_one_component(mixture):
    x, component = points(mixture, 50)
    noised = x + 0.3
    one_hot = torch.nn.functional.one_hot(component, len(mixture.weights))
    stds, means = mixture.stds[component], mixture.means[component]
    expected = means + stds**2 / (stds**2 + 0.09) * (noised - means)
    torch.testing.assert_close(mixture.denoised(noised, 0.3, component), expected)
    torch.testing.assert_close(mixture.denoised(noised, 0.3, one_hot), expected)
    at_least = mixture.log_density(noised, 0.3, component) + mixture.weights.log()[component]
    assert (at_least <= mixture.log_density(noised, 0.3) + 1e-12).all()
    # the flow of one Gaussian in closed form
    end = means + ((stds**2 + 0.002**2) / (stds**2 + 0.09)).sqrt() * (noised - means)
    torch.testing.assert_close(mixture.consistency(noised, 0.3, 0.002, component), end, rtol=0, atol=1e-8)


def test_the_flow_goes_both_ways_and_composes():
    mixture = GaussianMixture.ring()
    x = points(mixture, 50)[0] * 3
    sigma = torch.linspace(0.1, 10, 50, dtype=torch.float64)
    down = mixture.flow(x, sigma, 0.05)
    torch.testing.assert_close(
        mixture.flow(mixture.flow(x, sigma, sigma / 3), sigma / 3, 0.05), down, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(mixture.flow(x, sigma, sigma), x)
    torch.testing.assert_close(mixture.flow(mixture.flow(x, sigma, 2 * sigma), 2 * sigma, sigma), x, rtol=0, atol=1e-6)


def test_the_flow_carries_noise_to_the_data():
    mixture = GaussianMixture.ring()
    noise = 80 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    samples = mixture.consistency(noise, 80.0)
    assert samples.dtype == torch.float32
    # the mean log-density is the mixture's negative entropy, and each component has its share
    reference = mixture.log_density(points(mixture, 100_000)[0]).mean()
    assert mixture.log_density(samples.double()).mean() == pytest.approx(reference.item(), abs=0.15)
    nearest = torch.cdist(samples.double(), mixture.means).argmin(1).bincount(minlength=8) / 1000
    torch.testing.assert_close(nearest.double(), mixture.weights, rtol=0, atol=0.05)


@pytest.mark.parametrize("levels", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_the_flow_needs_positive_levels(levels):
    with pytest.raises(ValueError, match="positive noise levels"):
        GaussianMixture.ring().flow(torch.zeros(3, 2), *levels)


@pytest.mark.parametrize(
    ("weights", "means", "stds", "message"),
    [
        ([1.0], [[0.0]], [0.0], "must be positive"),
        ([-1.0], [[0.0]], [1.0], "must be positive"),
        ([1.0, 1.0], [[0.0]], [1.0], "must fit together"),
        ([1.0], [[0.0, 1.0]], [[1.0, 1.0, 1.0]], "must fit together"),
        ([1.0], [0.0], [1.0], "must fit together"),
    ],
)
def test_refuses_what_is_no_mixture(weights, means, stds, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(weights, means, stds)


# As a data source


@pytest.mark.parametrize("dimension", [1, 2, 16])
def test_points_are_images_that_depend_on_the_rows_alone(dimension):
    source = Mixture(dimension, components=5)
    whole = source[Slot(BatchRandom(0, 7, 12, slice(0, 12)), None)]
    part = source[Slot(BatchRandom(0, 7, 12, slice(3, 9)), None)]
    assert whole.images.shape == (12, *source.shape) == (12, dimension, 1, 1)
    assert torch.equal(whole.images[3:9], part.images)
    assert torch.equal(whole.labels[3:9], part.labels)
    assert not torch.equal(whole.images, source[Slot(BatchRandom(0, 8, 12, slice(0, 12)), None)].images)


def test_points_follow_the_mixture():
    source = Mixture(2)
    batch = source[next(iter(StepSampler(None, 50_000, seed=0)))]
    points, labels = batch.images.flatten(1).double(), batch.labels
    for k in range(source.num_classes):
        mine = points[labels == k]
        torch.testing.assert_close(mine.mean(0), source.distribution.means[k], rtol=0, atol=0.01)
        torch.testing.assert_close(mine.std(0), source.distribution.stds[k].expand(2), rtol=0.1, atol=0)
    assert (labels.bincount(minlength=8) / 50_000).tolist() == pytest.approx(
        source.distribution.weights.tolist(), abs=0.01
    )
    # label and noise come from streams of their own: no correlation
    noise = (points - source.distribution.means[labels]) / source.distribution.stds[labels]
    assert torch.corrcoef(torch.stack([noise[:, 0], labels.double()]))[0, 1].abs() < 0.02


def test_the_fixed_sample_is_the_same_every_time():
    first, second = Mixture(3, sample_size=100), Mixture(3, sample_size=100)
    assert torch.equal(first.images, second.images)
    assert first.images.shape == (100, 3, 1, 1)
    assert first.labels.shape == (100,)
    assert first.digest == second.digest
    assert (
        len({Mixture(3, seed=1).digest, Mixture(4).digest, Mixture(3, 9).digest, Mixture(3).digest, first.digest}) == 5
    )


def test_images_have_the_denoiser_and_consistency_function_of_their_points():
    source = Mixture(2)
    x, sigma = source.images[:5], torch.tensor([0.1, 0.2, 0.5, 1, 2])
    labels = source.labels[:5]
    for name in ("denoised", "consistency"):
        flat = getattr(source.distribution, name)(x.flatten(1), sigma, labels=labels)
        assert torch.equal(getattr(source, name)(x, sigma, labels=labels), flat[:, :, None, None])


@pytest.mark.parametrize("key", ["dimension", "components", "sample_size"])
def test_a_source_of_nothing_is_refused(key):
    with pytest.raises(ValueError, match=f"{key}=0 is not .* >= 1"):
        Mixture(**{key: 0})
