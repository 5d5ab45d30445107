"""Optimisers of torch with fewer kernel launches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from annotated_types import Len
from torch import Tensor
from torch.optim.radam import radam

from consistency_models.optim.sharding import local_shards
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, NotNegative, Positive, checked

__all__ = ["RAdam", "match_layouts"]

Buffers = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""Parameters, gradients, m, v, step numbers."""


@loadable()
class RAdam(torch.optim.RAdam):
    """torch's RAdam (Liu et al., arXiv 1908.03265, Algorithm 2), computed with the multi-tensor kernel of Adam.

    Once ρ_k = ρ_∞ - 2kβ₂ᵏ/(1 - β₂ᵏ) > 5, a step of RAdam is one of Adam with other constants,

        lr·r·m̂·√(1 - β₂ᵏ)/(√v + ε)  =  (lr·r)·m̂ / (√v̂ + ε/√(1 - β₂ᵏ)),      v̂ = v/(1 - β₂ᵏ),   r² as in the paper.

    torch's RAdam computes the first steps, with smaller ρ_k. State and checkpoints are those of torch's RAdam.

    Args:
        params: parameters, or groups of parameters.
        lr, betas, eps, weight_decay: as in torch; the decay is added to the gradient.
    """

    @checked
    def __init__(
        self,
        params: Iterable,
        lr: Positive = 1e-3,
        betas: Annotated[Sequence[BelowOne], Len(2, 2)] = (0.9, 0.999),
        eps: NotNegative = 1e-8,
        weight_decay: NotNegative = 0.0,
    ) -> None:
        super().__init__(params, lr, (betas[0], betas[1]), eps, weight_decay, foreach=True)

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step. Returns the result of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            tensors: Buffers = ([], [], [], [], [])
            is_complex = self._init_group(group, *tensors)
            if any(hasattr(parameter, "_local_tensor") for parameter in tensors[0]):  # sharded
                for part in tensors:
                    part[:] = local_shards(part)
            constants = {name: group[name] for name in ("lr", "weight_decay", "eps")}
            constants |= dict(zip(("beta1", "beta2"), group["betas"]))
            if is_complex or not _as_adam(*tensors, **constants):
                radam(*tensors, **constants, foreach=True, has_complex=is_complex)
        return loss


@torch.no_grad()
def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Give the state of each parameter the memory layout of the parameter, in place.

    A fused kernel reads a parameter and its state in the order of memory, whatever their strides are. The strides
    differ if a checkpoint of another `channels_last` is resumed.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _as_adam(parameters, gradients, m, v, steps, *, lr, weight_decay, eps, beta1, beta2) -> bool:
    """Take the step with Adam's kernel, if the kernel supports it."""
    numbers = {step.item() for step in steps}  # host tensors
    kinds = {(parameter.device, parameter.dtype) for parameter in parameters}
    if len(numbers) != 1 or len(kinds) != 1 or parameters[0].device.type not in ("cpu", "cuda"):
        return False
    k, rho_inf = numbers.pop() + 1, 2 / (1 - beta2) - 1
    correction = 1 - beta2**k
    rho = rho_inf - 2 * k * beta2**k / correction
    if rho <= 5:
        return False
    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    torch._foreach_add_(steps, torch.tensor(1.0), alpha=1.0)
    number = torch.full((), k, dtype=torch.float32, device=parameters[0].device)
    torch._fused_adam_(
        parameters,
        gradients,
        m,
        v,
        [],
        [number] * len(parameters),
        lr=lr * r,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps / math.sqrt(correction),
        amsgrad=False,
        maximize=False,
    )
    return True
