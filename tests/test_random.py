"""Random numbers: functions of (seed, step, stream, position), whoever draws them and in whatever pieces."""

import hashlib

import pytest
import torch
from torch import nn

from consistency_models.random import BatchRandom, seed_of

WHOLE = BatchRandom(seed=3, step=7, total=12, local_slice=slice(0, 12))


@pytest.mark.parametrize("draw", ["randn", "rand"])
@pytest.mark.parametrize("pieces", [[(0, 12)], [(0, 6), (6, 12)], [(0, 3), (3, 6), (6, 9), (9, 12)], [(0, 5), (5, 12)]])
def test_any_division_of_the_batch_draws_the_same_numbers(draw, pieces):
    whole = getattr(WHOLE, draw)("noise", 3, 4, dtype=torch.float64)
    assert whole.shape == (12, 3, 4)
    assert whole.dtype == torch.float64
    parts = [BatchRandom(3, 7, 12, slice(a, b)) for a, b in pieces]
    assert [len(part) for part in parts] == [b - a for a, b in pieces]
    assert torch.equal(torch.cat([getattr(part, draw)("noise", 3, 4, dtype=torch.float64) for part in parts]), whole)


def test_drawing_again_or_something_else_before_changes_nothing():
    first = WHOLE.randn("noise", 2)
    torch.manual_seed(99)
    WHOLE.rand("levels")
    assert torch.equal(WHOLE.randn("noise", 2), first)


@pytest.mark.parametrize(
    "other",
    [BatchRandom(4, 7, 12, slice(0, 12)), BatchRandom(3, 8, 12, slice(0, 12))],
    ids=["another seed", "another step"],
)
def test_seeds_and_steps_are_independent(other):
    assert not torch.isclose(WHOLE.randn("noise", 50), other.randn("noise", 50)).any()


def test_streams_are_independent():
    assert not torch.isclose(WHOLE.randn("noise", 50), WHOLE.randn("churn", 50)).any()


def test_the_laws():
    rows = BatchRandom(0, 0, 100_000, slice(0, 100_000))
    normal, uniform = rows.randn("noise"), rows.rand("levels")
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01


def test_both_passes_of_a_step_have_the_same_dropout_masks_and_other_rows_have_others():
    dropout, x = nn.Dropout(0.5), torch.ones(64)
    masks = []
    for rows in (WHOLE, WHOLE, BatchRandom(3, 7, 12, slice(6, 12)), BatchRandom(3, 8, 12, slice(0, 12))):
        rows.seed_dropout()
        masks.append(dropout(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3])


def test_seed_is_the_same_on_every_machine_and_fits_a_generator():
    """From the definition, so that a checkpoint of one machine or release continues on another."""
    digest = hashlib.blake2b(b"0/41/noise", digest_size=8).digest()
    assert seed_of(0, 41, "noise") == sum(byte << 8 * i for i, byte in enumerate(digest)) // 2 == 8974444172575076183
    seeds = {seed_of(seed, step, stream) for seed in range(10) for step in range(100) for stream in ("a", "b")}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 11) != seed_of(11, 1)
    assert seed_of(1, 11) != seed_of(11, 1, "")
