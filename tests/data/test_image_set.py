"""Image sets: what they declare of themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from consistency_models.data import ImageSet, Slot, sigma_data
from consistency_models.random import BatchRandom


def make(n=6, **changes):
    images = torch.arange(n * 12, dtype=torch.uint8).view(n, 3, 2, 2)
    return replace(ImageSet("some", images, torch.arange(n) % 3, 3), **changes)


def test_a_slot_gives_its_images_and_labels():
    rows = BatchRandom(0, 0, 3, slice(0, 3))
    batch = make()[Slot(rows, torch.tensor([4, 0, 4]))]
    assert torch.equal(batch.images, make().images[[4, 0, 4]])
    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.rows is rows
    assert len(batch) == 3


def test_a_batch_moves_as_a_whole():
    batch = make()[Slot(BatchRandom(0, 0, 1, slice(0, 1)), torch.tensor([0]))].to("meta")
    assert batch.images.device.type == batch.labels.device.type == "meta"


def test_the_digest_is_of_the_content():
    digest = make().digest
    assert digest == make(name="other").digest
    assert digest != make(images=make().images.flip(0)).digest
    assert digest != make(images=make().images.view(6, 2, 2, 3)).digest
    assert digest != make(labels=make().labels.flip(0)).digest
    assert digest != make(labels=None, num_classes=0).digest


def test_sigma_data_is_the_standard_deviation_of_all_pixels():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (50, 3, 4, 4), dtype=np.uint8))
    expected = (images.numpy() / 127.5 - 1).std()
    assert sigma_data(images) == pytest.approx(expected, abs=1e-12)
    assert sigma_data(images, at_most=25) == pytest.approx((images[::2].numpy() / 127.5 - 1).std(), abs=1e-12)
    assert ImageSet("some", images).sigma_data == sigma_data(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(6, 3, 2, 2)}, "uint8 of shape"),
        ({"images": torch.zeros(6, 2, 2, dtype=torch.uint8)}, "uint8 of shape"),
        ({"images": torch.zeros(0, 3, 2, 2, dtype=torch.uint8)}, "n > 0"),
        ({"num_classes": 0}, "or neither"),
        ({"labels": None}, "or neither"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"shape \(6,\)"),
        ({"labels": torch.zeros(6)}, "int64"),
    ],
)
def test_refuses_what_does_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
