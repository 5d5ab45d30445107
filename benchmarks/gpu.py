"""All measurements on a GPU in one command: DDPM++ at CIFAR-10 size, consistency training in bf16.

    python benchmarks/gpu.py --json gpu.json                 # one GPU, about half an hour
    python benchmarks/gpu.py --device cpu --overrides data=digits network=small data.batch_size=8 --long 3   # rehearsal

Prints three tables. The first shows the gain of each lever (images/s, memory, share of the measured bf16 matmul peak
over useful FLOPs, host reads). The second shows the deviation of loss and gradient of the first step from float32, on
the same images, noise and weights. The third shows a training of 2,000 steps with all levers, in which no loss and no
gradient may be NaN or Inf.
"""

from __future__ import annotations

import copy
from typing import Any

import measuring
import torch
import train_step
from case import Case
from lightning import Callback

from consistency_models.errors import NonFiniteError

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
    """Stores loss and gradient of the first step, in float64 on the host."""

    def on_before_optimizer_step(self, trainer: Any, method: Any, optimizer: Any) -> None:
        """Copy loss and gradient to the host."""
        gradients = [p.grad.flatten() for p in method.model.parameters() if p.grad is not None]
        self.gradient = torch.cat(gradients).double().cpu()
        self.loss = torch.stack(method.monitored["train/loss"]).double().mean().item()


class Losses(Callback):
    """Stores the loss of every step, on the device."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, method: Any, *args: Any) -> None:
        """Store the loss of the step."""
        self.values.append(method.monitored["train/loss"][0])


def deviations(levers: list[str], overrides: list[str], device: str) -> list[dict[str, Any]]:
    """Return the relative deviation of loss and gradient from float32, one row for each lever."""
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
    """Train for `steps` steps, and return whether all losses and gradients are finite, and the mean losses."""
    losses, finite = Losses(), True
    try:
        Case([*overrides, *train_step.overrides_of(lever)], device).train(steps, losses)
    except NonFiniteError:
        finite = False
    values, tenth = torch.stack(losses.values).float().cpu(), max(1, steps // 10)
    finite = finite and bool(values.isfinite().all())
    means = {"first": values[:tenth].mean().item(), "last": values[-tenth:].mean().item()}
    return {"lever": lever, "steps": len(values), "finite": finite, **means}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument(
        "--levers", nargs="*", default=LEVERS, help="levers of train_step.py; the longest name gets the long training"
    )
    parser.add_argument("--overrides", nargs="*", default=[], help=f"for train.py, after {' '.join(OVERRIDES)}")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each round")
    parser.add_argument("--warm", type=int, default=6, help="steps before the measurement")
    parser.add_argument("--long", type=int, default=2000, help="steps of the long training")
    args = parser.parse_args(arguments)
    overrides = [*OVERRIDES, *args.overrides]
    results = measuring.machine(args)
    results["matmul_teraflop_per_second"] = {
        k: measuring.peak(args.device, v) / 1e12 for k, v in measuring.DTYPES.items()
    }
    timing = copy.copy(args)
    timing.overrides = overrides[1:]
    results["rows"] = train_step.measure("ict", timing)
    results["numerics"] = deviations(args.levers, overrides, args.device)
    results["long"] = [endurance(max(args.levers, key=len), args.long, overrides, args.device)]
    measuring.report(results, train_step.COLUMNS, args.json)
    print(measuring.table(results["numerics"], NUMERICS))
    print(measuring.table(results["long"], LONG))
    return results


if __name__ == "__main__":
    main()
