"""Which image in which step: whatever the processes, micro-batches, workers and interruptions."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consistency_models.data import StepSampler


def steps(n, total, count, ranks=1, accumulate=1, begin=0, **options):
    """Global batches as lists of (row, image), put together from the slots of all ranks."""
    batches = [[] for _ in range(count)]
    for rank in range(ranks):
        sampler = StepSampler(n, total, 3, rank, ranks, accumulate, start=lambda: begin, **options)
        for slot in islice(sampler, count * accumulate):
            rows = range(slot.rows.local_slice.start, slot.rows.local_slice.stop)
            assert len(rows) == len(slot.indices) == total // (ranks * accumulate)
            batches[slot.rows.step - begin] += zip(rows, slot.indices.tolist())
    return [sorted(batch) for batch in batches]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 5),
    ranks=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    begin=st.integers(0, 9),
)
def test_the_global_batch_depends_on_seed_and_step_alone(n, size, ranks, accumulate, begin):
    total = size * ranks * accumulate
    undisturbed = steps(n, total, begin + 4)
    assert [[row for row, _ in batch] for batch in undisturbed] == [list(range(total))] * (begin + 4)
    assert steps(n, total, 4, ranks, accumulate, begin) == undisturbed[begin:]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("n", "total"), [(36, 6), (10, 6), (5, 12), (7, 42)])
def test_every_image_once_an_epoch(ranks, n, total):
    drawn = [image for batch in steps(n, total, 3 * n, ranks) for _, image in batch]
    epochs = [drawn[i : i + n] for i in range(0, len(drawn), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # in another order each time


def test_each_micro_batch_is_contiguous_and_ranks_alternate():
    slots = list(islice(StepSampler(100, 12, 0, rank=1, ranks=2, accumulate=3), 3))
    assert [slot.rows.local_slice for slot in slots] == [slice(2, 4), slice(6, 8), slice(10, 12)]


def test_another_seed_is_another_order():
    first, second = (next(iter(StepSampler(100, 100, seed))).indices for seed in (0, 1))
    assert not torch.equal(first, second)


def test_each_iteration_begins_where_start_says():
    step = 0
    sampler = StepSampler(10, 4, 0, start=lambda: step)
    undisturbed = [slot.indices for slot in islice(sampler, 6)]
    step = 4
    assert torch.equal(next(iter(sampler)).indices, undisturbed[4])


def test_a_period_repeats_images_but_not_random_numbers():
    slots = list(islice(StepSampler(100, 4, 0, period=2), 5))
    assert torch.equal(slots[0].indices, slots[4].indices)
    assert not torch.equal(slots[0].indices, slots[1].indices)
    assert not torch.equal(slots[0].rows.rand("flip"), slots[4].rows.rand("flip"))


def test_without_a_fixed_set_there_are_no_indices():
    assert next(iter(StepSampler(None, 4, 0))).indices is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 10, "ranks": 2, "accumulate": 2}, r"data.batch_size=10 is .* a multiple of 4.* data.batch_size=8"),
        ({"total": 2, "ranks": 4}, "data.batch_size=4"),
        ({"total": 0}, "at least 1"),
        ({"n": 0}, "at least 1"),
        ({"accumulate": 0}, "at least 1"),
        ({"rank": 2, "ranks": 2}, r"rank must be in \[0, 2\)"),
    ],
)
def test_refuses_what_cannot_be_divided(arguments, message):
    with pytest.raises(ValueError, match=message):
        StepSampler(**{"n": 10, "total": 8, "seed": 0, **arguments})
