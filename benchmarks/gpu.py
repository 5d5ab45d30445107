"""All measurements on a GPU in one command: DDPM++ at CIFAR-10 size, consistency training in bf16.

    python benchmarks/gpu.py --json gpu.json --cifar10 FOLDER    # one GPU, more than an hour
    python benchmarks/gpu.py --parts levers numerics --rounds 2 --steps 4    # a part of it
    python benchmarks/gpu.py --device cpu --overrides data=digits network=small data.batch_size=8 --long 3   # rehearsal

Prints tables of the parts

    levers        images/s, memory, share of the measured matmul peak over useful FLOPs, and host reads, for each lever
    profile       the operations that take most of the time of a step in bf16
    methods       the same for steps with a derivative, model=sct and model=meanflow
    numerics      deviation of loss and gradient of the first step from float32, on the same images, noise and weights
    long          a training of 2,000 steps with all levers, in which no loss and no gradient may be NaN or Inf
    from_nothing  Fréchet distance after `--minutes` on CIFAR-10 with classes, from fresh weights: a teacher, ECT after
                  a teacher of half the time, and iCT, with the settings of experiment=cifar10_small, the levers of
                  the long training, and students in float16; see time_to_quality.py

A part that cannot be measured on this machine is listed with the reason.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import measuring
import time_to_quality
import torch
import train_step
from case import Case
from lightning import Callback
from torch.profiler import ProfilerActivity, profile

from consistency_models.errors import NonFiniteError

OVERRIDES = ["model=ict", "data=cifar10", "network=ddpmpp", "data.batch_size=512"]
METHODS = ["sct", "meanflow"]
FINER = "trainer.precision=16-mixed"  # bf16 is too coarse for the small gaps of a student's levels, see rounding.py
STUDENT = f"recipe.lr=3e-4 {FINER}"
FROM_NOTHING = ["model=teacher", f"{time_to_quality.STAGES['ECT']} {STUDENT}", f"model=ict recipe.s1=80 {STUDENT}"]
SHORT = ["experiment=cifar10_small", "network.channel_mult=[2,2,2]", "data.batch_size=128", "recipe.ema=0.995"]
SHORT += ["evaluation.n=1000"]
LEVERS = ["on_host", "fp16", "bf16", "bf16+channels_last", "bf16+channels_last+compile", "bf16+compile"]
PARTS = ["levers", "profile", "methods", "numerics", "long", "from_nothing"]
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


class Profile(Callback):
    """Profiles the steps after the first three."""

    def __init__(self, device: str) -> None:
        kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        self.profiler, self.key = profile(activities=kinds[: 1 + (device == "cuda")]), f"self_{device}_time_total"

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Start after the third step."""
        if trainer.global_step == 3:
            self.profiler.start()

    def on_train_end(self, *args: Any) -> None:
        """Stop after the last step."""
        self.profiler.stop()

    def table(self) -> str:
        """Return the operations with the longest times."""
        return self.profiler.key_averages().table(self.key, row_limit=25, max_name_column_width=70)


class Losses(Callback):
    """Stores the loss of every step, on the device."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, method: Any, *args: Any) -> None:
        """Store the loss of the step."""
        self.values.append(method.monitored["train/loss"][0])


def deviations(levers: list[str], overrides: list[str], device: str) -> list[dict[str, Any]]:
    """Return the relative deviation of loss and gradient from float32, one row for each lever.

    float16 has no row: the first scale of the loss is too large, so that the first step has no gradient.
    """
    firsts = {}
    for lever in ["none", *(each for each in levers if "fp16" not in each)]:
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


def from_nothing(lever: str, args: argparse.Namespace) -> None:
    """Train each of the `--choices` on CIFAR-10, and print and write what time_to_quality.py does."""
    folder = args.json.with_suffix("") if args.json else Path("runs/gpu")
    overrides = [*OVERRIDES[1:-1], *SHORT, *args.overrides, f"data.root={args.cifar10.absolute()}"]
    fixed = ["--folder", str(folder), "--runs", str(folder / "runs"), "--device", args.device, "--seeds", "0"]
    fixed += ["--minutes", str(args.minutes), "--choices", *args.choices]
    time_to_quality.main([*fixed, "--overrides", *overrides, *train_step.overrides_of(lever)])


def store(results: dict[str, Any], part: str, columns: dict[str, str], file: Path | None) -> None:
    """Print the table of a part, and write all results so far: the machine may be lent for a short time."""
    print(measuring.table(results[part], columns))
    if file:
        file.write_text(json.dumps(results, indent=1))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = measuring.parser(__doc__)
    made.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure")
    made.add_argument(
        "--levers", nargs="*", default=LEVERS, help="levers of train_step.py; the last one gets the long training"
    )
    made.add_argument("--overrides", nargs="*", default=[], help=f"for train.py, after {' '.join(OVERRIDES)}")
    made.add_argument("--steps", type=int, default=20, help="measured steps of each round")
    made.add_argument("--warm", type=int, default=6, help="steps before the measurement")
    made.add_argument("--long", type=int, default=2000, help="steps of the long training")
    made.add_argument("--cifar10", type=Path, help="folder of CIFAR-10, see conf/data/cifar10.yaml")
    made.add_argument("--minutes", type=float, default=8, help="of each training from nothing")
    made.add_argument("--choices", nargs="+", default=FROM_NOTHING, help="trainings from nothing")
    return made


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    args = parser().parse_args(arguments)
    overrides, missing = [*OVERRIDES, *args.overrides], {}
    if args.device == "cpu":
        missing["memory"] = "there is no GPU: peak MiB is the memory of the process"
        missing["on_host"] = "there is no GPU: all images are on the host"
        missing["fp16"] = "there is no GPU: PyTorch's autocast has no float16 for training on a CPU"
        args.levers = [lever for lever in args.levers if lever not in missing]
    if args.cifar10 is None and "from_nothing" in args.parts:
        missing["from nothing"] = "add --cifar10 FOLDER"
    best = args.levers[-1]
    results = measuring.machine(args) | {"rows": [], "methods": [], "numerics": [], "long": [], "not_measured": missing}
    results["matmul_teraflop_per_second"] = {
        k: measuring.peak(args.device, v) / 1e12 for k, v in measuring.DTYPES.items()
    }
    timing = copy.copy(args)
    timing.overrides, timing.clock = overrides[1:], "wall"
    if "levers" in args.parts:
        results["rows"] = train_step.measure("ict", timing)
    measuring.report(results, train_step.COLUMNS, args.json)
    if "profile" in args.parts:
        step = Profile(args.device)
        Case([*overrides, *train_step.overrides_of("bf16")], args.device).train(5, step)
        print(step.table())
    if "methods" in args.parts:
        timing.levers = ["bf16"]
        results["methods"] = [row for model in METHODS for row in train_step.measure(model, timing)]
        store(results, "methods", train_step.COLUMNS, args.json)
    if "numerics" in args.parts:
        results["numerics"] = deviations(args.levers, overrides, args.device)
        store(results, "numerics", NUMERICS, args.json)
    if "long" in args.parts:
        results["long"] = [endurance(best, args.long, overrides, args.device)]
        store(results, "long", LONG, args.json)
    print(*(f"not measured here: {part} ({reason})" for part, reason in missing.items()), sep="\n")
    if args.cifar10 is not None and "from_nothing" in args.parts:  # takes most of the time; it has a file of its own
        from_nothing(best, args)
    return results


if __name__ == "__main__":
    main()
