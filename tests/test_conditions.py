"""Prompts are indexed, moved and pinned as tensors are; networks without classes or text take None."""

import pytest
import torch
from torch import nn

from consistency_models.conditions import Prompt, dropped, encode, is_given, unconditional
from consistency_models.data.batch import Batch
from consistency_models.noise import EDM, Preconditioned
from consistency_models.random import BatchRandom
from consistency_models.teachers import Guided


def prompt(n=3):
    numbers = torch.arange(n * 8.0).view(n, 2, 4)
    return Prompt(numbers, numbers[:, 0], numbers[:, 0, :1], torch.arange(float(n)), torch.zeros(2, 4), torch.zeros(4))


def test_rows_of_a_prompt():
    prompts = prompt()
    assert len(prompts) == 3
    for rows in (torch.tensor([2, 0]), slice(1, 3), torch.tensor([True, False, True])):
        chosen = prompts[rows]
        for name in ("text", "pooled", "sizes", "guidance"):
            torch.testing.assert_close(getattr(chosen, name), getattr(prompts, name)[rows], rtol=0, atol=0)
        assert chosen.empty is prompts.empty


def test_all_parts_are_converted():
    parts = vars(prompt().to(torch.float64))
    assert {part.dtype for part in parts.values()} == {torch.float64}
    assert vars(Prompt(torch.ones(1, 2, 4)).to("cpu"))["pooled"] is None


def test_all_parts_are_pinned(monkeypatch):
    """`Tensor.pin_memory`, called with a `Prompt`, would raise a TypeError on a GPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # there may be no GPU
    images, rows = torch.zeros(3, 1), BatchRandom(0, 0, 3, slice(0, 3))
    batch = Batch(images, prompt(), rows).pin_memory()
    assert torch.equal(batch.images, images + 1)
    for name, part in vars(prompt()).items():
        assert torch.equal(getattr(batch.labels, name), part + 1), name


def test_the_empty_prompt():
    prompts = prompt()
    empty = prompts.unconditional()
    assert not empty.text.any()
    assert not empty.pooled.any()
    assert empty.sizes is prompts.sizes
    mixed = prompts.with_dropped(torch.tensor([False, True, False]))
    assert [row.any().item() for row in mixed.text] == [True, False, True]
    torch.testing.assert_close(mixed.pooled[2], prompts.pooled[2], rtol=0, atol=0)
    with pytest.raises(ValueError, match="empty prompt"):
        Prompt(torch.ones(1, 2, 4)).unconditional()


def test_conditions_of_both_kinds_are_dropped():
    rows, classes = torch.tensor([False, True, False]), torch.eye(3)
    for condition in (prompt(), classes):
        assert is_given(condition).all()
        assert is_given(dropped(condition, rows)).tolist() == [True, False, True]
    assert torch.equal(dropped(classes, rows), torch.diag(torch.tensor([1.0, 0.0, 1.0])))


def test_parts_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"'text': 2, 'guidance': 3"):
        Prompt(torch.ones(2, 2, 4), guidance=torch.ones(3))


def test_a_batch_with_prompts_is_moved():
    batch = Batch(torch.ones(3, 1, 2, 2), prompt(), BatchRandom(0, 0, 3, slice(0, 3))).to("meta")
    assert batch.labels.text.is_meta
    assert batch.images.is_meta


class Linear(nn.Module):
    """F = x·(mean of the text), with text as condition."""

    def encode(self, labels):
        return labels

    def unconditional(self, labels):
        return labels.unconditional()

    def forward(self, x, noise_label, labels=None, augment=None):
        return x * labels.text.mean((1, 2)).view(-1, 1, 1, 1)


def test_guidance_of_each_row():
    model, prompts, x = Preconditioned(Linear(), EDM()), prompt(), torch.randn(3, 1, 2, 2)
    model.origin = {}
    assert encode(model.network, prompts) is prompts
    sigma = torch.full((3,), 2.0)
    cond, empty = model(x, sigma, prompts), model(x, sigma, unconditional(model, prompts))
    expected = cond + prompts.guidance.view(3, 1, 1, 1) * (cond - empty)
    torch.testing.assert_close(Guided(model, None)(x, sigma, prompts), expected)
    torch.testing.assert_close(Guided(model, 3.0)(x, sigma, prompts), cond + 2 * (cond - empty))
    with pytest.raises(ValueError, match=r"teacher\.guidance=null"):
        Guided(model, None)(x, sigma, Prompt(prompts.text, empty=prompts.empty))


def test_networks_without_text():
    class OneHot(nn.Module):
        num_classes = 3

    assert encode(nn.Identity(), torch.tensor([1])) is None
    assert encode(OneHot(), None) is None
    assert encode(OneHot(), torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert unconditional(nn.Identity(), torch.ones(1, 3)) is None
