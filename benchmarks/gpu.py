"""All that is asked of a GPU, by one command: DDPM++ at CIFAR-10 size, consistency training in bf16.

    python benchmarks/gpu.py --json gpu.json                 # one GPU, about half an hour
    python benchmarks/gpu.py --device cpu --overrides data=digits network=small data.batch_size=8 --long 3   # rehearsal

Three tables: what each lever gains (images/s, memory, share of the measured bf16 matmul peak over useful FLOPs, host
reads); how far loss and gradient of the first step are from float32's, on the same images, noise and weights; and a
training of 2,000 steps with all levers, in which no loss and no gradient may be NaN or Inf.
"""

from __future__ import annotations

import copy
from typing import Any

import measuring
import torch
import train_step
from case import Case
from lightning import Callback

from consistency_models.callbacks.finite import NonFiniteError

OVERRIDES = ["model=ict", "data=cifar10", "network=ddpmpp", "data.batch_size=512"]
LEVERS = ["bf16", "bf16+channels_last", "bf16+compile", "bf16+channels_last+compile", "on_host"]
NUMERICS = {
    "lever": "{lever}",
    "loss, deviation": "{loss:.2e}",
    "gradient, deviation": "{gradient:.2e}",
    "cosine": "{cosine:.6f}",
}
LONG = {"lever": "{lever}", "steps": "{steps}", "finite": "{finite}", "loss, first tenth": "{first:.4g}"}
LONG |= {"loss, last tenth": "{last:.4g}"}


class FirstGradient(Callback):
    """Keeps loss and gradient of the first step, in float64 on the host."""

    def on_before_optimizer_step(self, trainer: Any, method: Any, optimizer: Any) -> None:
        """Copy them."""
        gradients = [p.grad.flatten() for p in method.model.parameters() if p.grad is not None]
        self.gradient = torch.cat(gradients).double().cpu()
        self.loss = torch.stack(method.monitored["train/loss"]).double().mean().item()


class Losses(Callback):
    """Keeps the loss of every step, on the device."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, method: Any, *args: Any) -> None:
        """Keep it."""
        self.kept.append(method.monitored["train/loss"][0])


def deviations(levers: list[str], overrides: list[str], device: str) -> list[dict[str, Any]]:
    """Relative deviation of loss and gradient from float32's, one row a lever."""
    firsts = {}
    for lever in ["none", *levers]:
        more = [] if lever == "none" else train_step.overrides_of(lever)
        firsts[lever] = FirstGradient()
        Case([*overrides, *more], device).train(1, firsts[lever])
    exact = firsts.pop("none")
    return [
        {
            "lever": lever,
            "loss": abs(first.loss - exact.loss) / abs(exact.loss),
            "gradient": ((first.gradient - exact.gradient).norm() / exact.gradient.norm()).item(),
            "cosine": torch.cosine_similarity(first.gradient, exact.gradient, dim=0).item(),
        }
        for lever, first in firsts.items()
    ]


def endurance(lever: str, steps: int, overrides: list[str], device: str) -> dict[str, Any]:
    """A longer training: does it stay finite?"""
    losses, finite = Losses(), True
    try:
        Case([*overrides, *train_step.overrides_of(lever)], device).train(steps, losses)
    except NonFiniteError:
        finite = False
    kept, tenth = torch.stack(losses.kept).float().cpu(), max(1, steps // 10)
    finite = finite and bool(kept.isfinite().all())
    ends = {"first": kept[:tenth].mean().item(), "last": kept[-tenth:].mean().item()}
    return {"lever": lever, "steps": len(kept), "finite": finite, **ends}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and, if wanted, write; returns what is written."""
    parser = measuring.parser(__doc__)
    parser.add_argument(
        "--levers", nargs="*", default=LEVERS, help="as of train_step.py; the one with most parts is trained for long"
    )
    parser.add_argument("--overrides", nargs="*", default=[], help=f"of train.py, after {' '.join(OVERRIDES)}")
    parser.add_argument("--steps", type=int, default=20, help="that count, in each round")
    parser.add_argument("--warm", type=int, default=6, help="that do not")
    parser.add_argument("--long", type=int, default=2000, help="steps of the long training")
    args = parser.parse_args(arguments)
    overrides = [*OVERRIDES, *args.overrides]
    found = measuring.machine(args)
    found["matmul_teraflop_per_second"] = {
        k: measuring.peak(args.device, v) / 1e12 for k, v in measuring.DTYPES.items()
    }
    timing = copy.copy(args)
    timing.overrides = overrides[1:]
    found["rows"] = train_step.measure("ict", timing)
    found["numerics"] = deviations(args.levers, overrides, args.device)
    found["long"] = [endurance(max(args.levers, key=len), args.long, overrides, args.device)]
    measuring.report(found, train_step.COLUMNS, args.json)
    print(measuring.table(found["numerics"], NUMERICS))
    print(measuring.table(found["long"], LONG))
    return found


if __name__ == "__main__":
    main()
