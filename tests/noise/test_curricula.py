"""Curricula and target decays: what every one promises, then the published laws."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consistency_models.noise import curricula
from consistency_models.noise.curricula import (
    AdaptiveDecay,
    Annealed,
    Constant,
    ConstantDecay,
    Cosine,
    Doubling,
    Linear,
    Progressive,
    Square,
)

CURRICULA = {
    "Constant": Constant(18),
    "Annealed": Annealed(),
    "Progressive": Progressive(),
    "Doubling": Doubling(),
    "Linear": Linear(),
    "Square": Square(),
    "Cosine": Cosine(),
}
DECAYS = {"ConstantDecay": ConstantDecay(0.95), "AdaptiveDecay": AdaptiveDecay(0.9, Progressive())}
GROWING = [Annealed, Progressive, Doubling, Linear, Square, Cosine]


def test_every_class_is_tested():
    assert set(CURRICULA) | set(DECAYS) == set(curricula.__all__)


@pytest.mark.parametrize("curriculum", CURRICULA.values(), ids=CURRICULA)
@pytest.mark.parametrize("K", [1, 2, 5, 8, 100, 400_000])
def test_points_never_fall_and_stay_beyond_the_end(curriculum, K):
    steps = sorted({k * K // 200 for k in range(201)} | {K - 1})
    points = [curriculum(k, K) for k in steps]
    assert all(type(N) is int and N >= 2 for N in points)
    assert points == sorted(points)
    assert curriculum(K + 1, K) == curriculum(10 * K, K) == curriculum(K, K)
    assert curriculum.s0 >= 1


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("K", [1, 5, 800_000])
def test_decays_stay_between_0_and_1(decay, K):
    values = [decay(k * K // 50, K) for k in range(60)]
    assert all(isinstance(mu, float) and 0 <= mu < 1 for mu in values)
    assert values == sorted(values)


@settings(deadline=None)
@given(s0=st.integers(1, 50), factor=st.integers(1, 200), K=st.integers(1, 10_000), make=st.sampled_from(GROWING))
def test_growth_from_s0_to_s1(s0, factor, K, make):
    s1 = s0 * factor
    curriculum = make(s0, s1)
    first = max(s0, 2) if make is Progressive else s0 + 1  # the square-root law starts one point lower
    assert curriculum(0, K) == first
    # Doubling is at s1 in its last stage, which a training shorter than its stages does not reach.
    stages = math.log2(factor) + 1
    if make is not Doubling or 4 * stages <= K:
        assert curriculum(K, K) == s1 + 1
    assert all(first <= curriculum(k, K) <= s1 + 1 for k in range(0, K, max(1, K // 20)))


def test_progressive_is_the_published_law():
    curriculum = Progressive(s0=2, s1=150)
    steps = {0: 2, 1000: 6, 100_000: 54, 400_000: 107, 799_999: 151, 800_000: 151}
    assert {k: curriculum(k, 800_000) for k in steps} == steps


def test_annealed_is_the_published_law_and_ends_in_the_middle_of_a_short_training():
    assert [Annealed()(k, 200_000) - 1 for k in (0, 25_000, 50_000, 75_000, 100_000, 199_999)] == [
        64, 135, 286, 605, 1280, 1280
    ]  # fmt: skip
    assert [Annealed()(k, 1_000_000) - 1 for k in (50_000, 100_000)] == [286, 1280]
    assert [Annealed()(k, 1000) - 1 for k in (0, 250, 499, 500, 1000)] == [64, 286, 1272, 1280, 1280]
    with pytest.raises(ValueError, match="steps=0 is not allowed"):
        Annealed(steps=0)


def test_doubling_is_the_published_law():
    curriculum = Doubling(s0=10, s1=1280)
    for stage, N in enumerate([11, 21, 41, 81, 161, 321, 641, 1281]):
        assert curriculum(50_000 * stage, 400_000) == curriculum(50_000 * (stage + 1) - 1, 400_000) == N


def test_shapes_at_a_quarter_and_a_half():
    assert [Linear(10, 110)(k, 4) for k in (1, 2)] == [36, 61]
    assert [Square(10, 110)(k, 4) for k in (1, 2)] == [17, 36]  # 10 + 6.25, 10 + 25
    assert [Cosine(10, 110)(k, 4) for k in (1, 2)] == [26, 61]  # 10 + 14.6, 10 + 50


def test_adaptive_decay_is_the_published_law():
    decay = AdaptiveDecay(0.9, Progressive(2, 150))
    assert math.isclose(decay(0, 800_000), 0.81)
    assert math.isclose(decay(800_000, 800_000), 0.998596, abs_tol=5e-7)
    assert math.isclose(AdaptiveDecay(0.95, Progressive(2, 200))(9, 9), 0.999487, abs_tol=5e-7)


def test_adaptive_decay_on_a_constant_grid_and_from_zero():
    assert AdaptiveDecay(0.95, Constant(40))(5, 9) == 0.95
    assert AdaptiveDecay(0, Progressive())(5, 9) == 0
    assert ConstantDecay(0)(5, 9) == 0


@pytest.mark.parametrize("make", GROWING)
@pytest.mark.parametrize(("s0", "s1"), [(0, 10), (11, 10), (-1, 10), (math.nan, 10)])
def test_ends_without_meaning_are_refused(make, s0, s1):
    with pytest.raises(ValueError, match=f"s0 {s0}, s1 {s1}|s0={s0} is not allowed"):
        make(s0, s1)


@pytest.mark.parametrize("curriculum", [c for name, c in CURRICULA.items() if name != "Constant"])
@pytest.mark.parametrize(("k", "K"), [(-1, 10), (0, 0)])
def test_steps_without_meaning_are_refused(curriculum, k, K):
    with pytest.raises(ValueError, match=f"k {k}, K {K}"):
        curriculum(k, K)


def test_a_single_level_is_refused():
    with pytest.raises(ValueError, match=r"N=1 is not allowed\. Allowed: a whole number >= 2"):
        Constant(1)


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_decays_without_meaning_are_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay} is not allowed"):
        ConstantDecay(decay)
    with pytest.raises(ValueError, match=f"initial={decay} is not allowed"):
        AdaptiveDecay(decay, Constant(18))
