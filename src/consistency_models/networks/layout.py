"""How a network runs: its precision, the memory layout of its convolutions, and compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = [
    "HALF",
    "compile_in_place",
    "differentiable_norms",
    "is_convolutional",
    "prefers_channels_last",
    "set_channels_last",
]

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The dtypes of networks under autocast, by the name of the precision in Lightning; 32-true has none."""


@contextmanager
def differentiable_norms() -> Iterator[None]:
    """Give group norms their inputs in the default layout, within the block, if torch is older than 2.14.

    Their forward derivative fails for channels-last inputs in torch 2.11 to 2.13 ("view size is not compatible").
    """
    if torch.__version__ >= "2.14":
        yield
        return
    hook = register_module_forward_pre_hook(_contiguous)  # type: ignore[arg-type]  # the type forgets the result
    try:
        yield
    finally:
        hook.remove()


def _contiguous(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    return (inputs[0].contiguous(),) if isinstance(module, nn.GroupNorm) else None


def is_convolutional(network: nn.Module) -> bool:
    """Return whether most weights belong to convolutions; the patch embedding of a transformer is a small share."""
    weights = list(network.parameters())
    return 2 * sum(p.numel() for p in weights if p.ndim == 4) > sum(p.numel() for p in weights)


def prefers_channels_last(network: nn.Module, device_type: str) -> bool:
    """Return whether channels-last is the faster layout, by the measurements of docs/performance.md.

    Convolutions on a CPU gain. On CUDA, those of bfloat16 gain as well, but each group norm copies its input to the
    default layout and its output back, which costs more. Results differ by rounding.

    Args:
        network: the network.
        device_type: cpu, cuda, mps.
    """
    return is_convolutional(network) and device_type == "cpu"


def set_channels_last(network: nn.Module, is_channels_last: bool) -> None:
    """Give all convolutions of a network the channels-last layout or the default layout, in place."""
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    if not all(p.is_contiguous(memory_format=layout) for p in network.parameters() if p.ndim == 4):
        network.to(memory_format=layout)


def compile_in_place(network: nn.Module) -> None:
    """Compile the calls of a network, so that its names in a checkpoint have no _orig_mod.

    Each batch size is compiled by itself: with variable sizes, a batch of another size would change the rounding of all
    later ones. Random numbers are those of PyTorch's own kernels, so that dropout masks are those of the eager network,
    and the target has those of the student.
    """
    network.compile(dynamic=False, options={"fallback_random": True})
