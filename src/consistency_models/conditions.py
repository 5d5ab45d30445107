"""Conditions: inputs of a network besides the noisy image and its noise level.

A class-conditional network takes one-hot rows. A network with text takes a `Prompt`. A condition of a batch can be
indexed by rows, has a length, and is moved and pinned as a tensor is; methods, solvers, samplers and metrics only do
that. A network that takes conditions of its own kind has two methods:

    encode(labels) -> condition             what `forward` takes, from what the data source gives
    unconditional(condition) -> condition   the condition without text, for classifier-free guidance
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Prompt", "dropped", "encode", "is_given", "unconditional"]

SHARED = ("empty", "empty_pooled")


@dataclass(frozen=True)
class Prompt:
    """The text condition of B images.

    Args:
        text: embeddings of the tokens, (B, L, width).
        pooled: embedding of the whole text, (B, pooled width), of SDXL; or None.
        sizes: original height and width, top and left of the crop, target height and width, (B, 6), of SDXL; or None.
        guidance: w of the guided output cond + w·(cond - uncond), (B,); one less than the `guidance` of teachers and
            pipelines. None: no guidance is drawn for each row.
        empty: `text` of the empty prompt, (L, width), the same for all rows; needed for guidance.
        empty_pooled: `pooled` of the empty prompt, (pooled width,).

    Raises:
        ValueError: the parts have different numbers of rows.
    """

    text: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    empty: Tensor | None = None
    empty_pooled: Tensor | None = None

    def __post_init__(self) -> None:
        rows = {name: len(part) for name, part in self._parts().items() if name not in SHARED}
        if len(set(rows.values())) > 1:
            raise ValueError(f"the parts of a prompt must have one number of rows; got {rows}")

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: Any) -> Prompt:
        """The prompts of these rows: a slice, a tensor of indices or a mask. `empty` stays as it is."""
        return self._each(lambda part: part[rows], shared=False)

    def to(self, *args: Any, **kwargs: Any) -> Prompt:
        """Convert all parts, with the arguments of `Tensor.to`."""
        return self._each(lambda part: part.to(*args, **kwargs))

    def pin_memory(self) -> Prompt:
        """Copy all parts to page-locked memory."""
        return self._each(lambda part: part.pin_memory())

    def unconditional(self) -> Prompt:
        """The same rows with the empty prompt; sizes and guidance stay.

        Raises:
            ValueError: the empty prompt is not known.
        """
        text, pooled = self._empty()
        return replace(self, text=text, pooled=pooled)

    def _empty(self) -> tuple[Tensor, Tensor | None]:
        if self.empty is None or (self.pooled is not None and self.empty_pooled is None):
            raise ValueError("guidance needs the embeddings of the empty prompt: give Prompt(empty=…, empty_pooled=…)")
        text = self.empty.expand_as(self.text)
        if self.pooled is None or self.empty_pooled is None:
            return text, None
        return text, self.empty_pooled.expand_as(self.pooled)

    def with_dropped(self, dropped: Tensor) -> Prompt:
        """The prompts with the empty prompt in the rows where `dropped`, bool (B,), is true."""
        (text, pooled), dropped = self._empty(), dropped.to(self.text.device, non_blocking=True)
        text = torch.where(dropped[:, None, None], text, self.text)
        if self.pooled is not None and pooled is not None:
            pooled = torch.where(dropped[:, None], pooled, self.pooled)
        return replace(self, text=text, pooled=pooled)

    def is_given(self) -> Tensor:
        """Whether the text of each row differs from the empty prompt, bool (B,)."""
        return (self.text != self._empty()[0]).flatten(1).any(1)

    def _parts(self) -> dict[str, Tensor]:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: part for name, part in parts if part is not None}

    def _each(self, function: Callable[[Tensor], Tensor], shared: bool = True) -> Prompt:
        parts = self._parts().items()
        return replace(self, **{name: function(part) for name, part in parts if shared or name not in SHARED})


def encode(network: Any, labels: Any) -> Any:
    """The condition that the network takes: of its own `encode`, or one-hot float rows (B, classes), or None.

    A network without classes and without `encode` is unconditional. One-hot rows may be zero: the null class.

    Args:
        network: `num_classes` is the number of its classes.
        labels: classes (B,), a `Prompt`, or None.
    """
    if hasattr(network, "encode"):
        return network.encode(labels)
    classes = getattr(network, "num_classes", 0)
    if not classes or labels is None:
        return None
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()  # one_hot synchronises


def unconditional(model: Any, labels: Any) -> Any:
    """The condition of classifier-free guidance without classes or text: of the network's own method, or None."""
    of_network = getattr(getattr(model, "network", None), "unconditional", None)
    return None if of_network is None else of_network(labels)


def dropped(labels: Tensor | Prompt, rows: Tensor) -> Tensor | Prompt:
    """The condition with none in the `rows`, bool (B,): zeros for one-hot rows, the empty prompt for text.

    Raises:
        ValueError: the empty prompt is not known.
    """
    if isinstance(labels, Prompt):
        return labels.with_dropped(rows)
    return labels * (~rows).float().to(labels.device, non_blocking=True)[:, None]


def is_given(labels: Tensor | Prompt) -> Tensor:
    """Whether each row has a condition, bool (B,): one-hot rows that are not zero, or text that is not empty."""
    return labels.is_given() if isinstance(labels, Prompt) else labels.sum(1) > 0
