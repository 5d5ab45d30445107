"""Learning-rate laws: what every one promises, then their values."""

import math

import pytest

from consistency_models.optim import learning_rates
from consistency_models.optim.learning_rates import InverseSqrt, Linear

ALL = [getattr(learning_rates, name)() for name in learning_rates.__all__]


@pytest.mark.parametrize("law", [*ALL, Linear(1000, 0.3), Linear(0, 1)])
@pytest.mark.parametrize("K", [1, 10, 400_000])
def test_factors_lie_between_0_and_1(law, K):
    factors = [law(k * K // 100, K, 64) for k in range(101)]
    assert all(isinstance(factor, float) and 0 <= factor <= 1 for factor in factors)


def test_the_papers_consistency_models_have_a_constant_rate():
    assert {Linear()(k, 100, 64) for k in range(101)} == {1.0}


def test_warm_up_counts_images_and_starts_at_0():
    law = Linear(warmup_images=10_000_000)
    assert [law(k, 10**6, 500) for k in (0, 5000, 20_000, 30_000)] == [0, 0.25, 1, 1]


def test_decay_falls_to_0_over_its_share_of_training():
    law = Linear(decay=0.5)
    assert [law(k, 100, 64) for k in (0, 50, 75, 100, 200)] == [1, 1, 0.5, 0, 0]
    assert law(99, 100, 64) == pytest.approx(0.02)  # the last step still trains


def test_inverse_square_root():
    law = InverseSqrt(reference_steps=100, warmup_images=0)
    assert [law(k, 10**6, 64) for k in (0, 100, 400, 10_000)] == [1, 1, 0.5, 0.1]
    assert InverseSqrt(100, 64 * 800)(400, 10**6, 64) == 0.25


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Linear(-1), "warmup_images"),
        (lambda: Linear(math.inf), "warmup_images"),
        (lambda: Linear(decay=-0.1), "decay"),
        (lambda: Linear(decay=1.1), "decay"),
        (lambda: InverseSqrt(0), "reference_steps"),
        (lambda: InverseSqrt(math.nan), "reference_steps"),
        (lambda: InverseSqrt(warmup_images=-1), "warmup_images"),
    ],
)
def test_laws_without_meaning_are_refused(make, name):
    with pytest.raises(ValueError, match=name):
        make()
