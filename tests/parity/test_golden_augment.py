"""EDM's augmentation, against official code with the same random draws."""

import re

import pytest
import torch
from parity.golden import cases, expect, load
from torch.testing import assert_close

from consistency_models.data.augment import AugmentPipe


class Injected:
    """BatchRandom whose draws are the file's, in the order of the official calls."""

    def __init__(self, case, name):
        self.left = [(key, case[key]) for key in sorted(case) if key.startswith(f"{name}/draw")]

    def rand(self, stream, *shape, dtype=torch.float32):
        key, draw = self.left.pop(0)
        below = re.search(r"randint(\d+)$", key)
        draw = (draw + 0.5) / int(below[1]) if below else draw  # of a whole number, the middle of its share of [0, 1)
        return draw.to(dtype).reshape(*shape, -1).movedim(-1, 0)

    randn = rand


@pytest.mark.parametrize(("path", "name"), cases(r"(.+)/labels", r".+/draw\d+_\w+"))
def test_augment(path, name):
    case = load(path)
    pipe, draws = AugmentPipe(**case["meta"]["cases"][name]["kwargs"]), Injected(case, name)
    images, labels = pipe(case["images"], draws)
    assert draws.left == []
    assert pipe.augment_dim == labels.shape[1]
    expect(labels, case, f"{name}/labels", rtol=1e-5, atol=1e-6)
    expected = case[f"{name}/out"]
    # float32: the error of a position, and with it of the image, grows with the size of the image
    assert_close(images, expected, rtol=0, atol=5e-5 * expected.abs().max().item())
