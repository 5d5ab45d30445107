"""Throughput of one and of two processes, and a model of the throughput of 8 and 64 GPUs.

    python benchmarks/scaling.py                                            # two processes of one thread each, gloo
    python benchmarks/scaling.py --device cuda --overrides data=cifar10 network=ddpmpp --batch 512     # NCCL
    python benchmarks/scaling.py --paper --compute 0.5 --backward 0.25 --parameters 55.7e6     # from measured times

Every process has the same batch for any number of processes, its images in memory, and its own threads. The loss is
therefore the exchange of gradients. Throughput is logged by `train.py`, after the first tenth of the steps.

In the model, a step of W processes takes

    compute + max(exchange - backward, last bucket),     exchange = 2·(W - 1)/W · gradient bytes / bandwidth

because a ring all-reduce exchanges buckets of gradients during the backward pass, and the last bucket afterwards.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring

BUCKET = 25 * 2**20  # bytes; DDP's default
LINKS = {8: 300e9, 64: 40e9}
"""Assumed bandwidth of an all-reduce, in bytes per second and GPU: within a node of 8 (NVLink 4: two thirds of 450e9
each way), and between nodes with one 400 Gbit/s adapter per GPU (four fifths of 50e9)."""
COLUMNS = {
    "processes": "{processes}",
    "images/s": "{images_per_second:.4g}",
    "of linear": "{efficiency:.1%}",
    "how": "{how}",
}


def trained(processes: int, args: argparse.Namespace) -> float:
    """Measure the images per second of a training with `processes` processes."""
    accelerator = "gpu" if args.device == "cuda" else "cpu"
    overrides = [
        f"trainer.accelerator={accelerator}",
        f"trainer.devices={processes}",
        f"trainer.strategy={'ddp' if processes > 1 else 'auto'}",
        f"trainer.max_steps={args.steps}",
        f"data.batch_size={processes * args.batch}",
        f"callbacks.metrics.every_n_steps={max(1, args.steps // 10)}",
        "logger=csv",
        *(f"callbacks.{name}=null" for name in ("samples", "validation", "progress")),
        *args.overrides,
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(measuring.ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}/run"],
            env=os.environ | {"OMP_NUM_THREADS": str(processes * args.threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"train.py ended with {done.returncode}:\n{done.stderr}")
        with open(Path(folder) / "run" / "metrics.csv", newline="") as file:
            return measuring.median([float(row["train/images_per_second"]) for row in csv.DictReader(file)][1:])


def step_on_paper(processes: int, compute: float, backward: float, gradient_bytes: float, bandwidth: float) -> float:
    """Compute the seconds of a step by the model; see the module."""
    share = 2 * (processes - 1) / processes / bandwidth
    return compute + max(share * gradient_bytes - backward, share * min(BUCKET, gradient_bytes), 0)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--overrides", nargs="*", default=[], help="overrides of train.py")
    parser.add_argument("--batch", type=int, default=64, help="images of each process")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--paper", action="store_true", help="compute only the model, without a measurement")
    parser.add_argument("--compute", type=float, default=None, help="seconds of a step of one process, for the model")
    parser.add_argument("--backward", type=float, default=None, help="seconds of its backward pass; by default half")
    parser.add_argument("--parameters", type=float, default=55.7e6, help="number of parameters; float32 gradients")
    args = parser.parse_args(arguments)
    if args.paper and args.compute is None:
        parser.error("--paper needs --compute, the seconds of a step: train_step.py measures them")
    results = measuring.machine(args) | {"rows": []}
    if not args.paper:
        runs = {processes: lambda processes=processes: trained(processes, args) for processes in (1, 2)}
        speeds = {n: measuring.median(values) for n, values in measuring.interleaved(runs, args.rounds).items()}
        results["rows"] += [
            {"processes": n, "images_per_second": speed, "efficiency": speed / (n * speeds[1]), "how": "measured"}
            for n, speed in speeds.items()
        ]
    if args.compute is not None:
        backward = args.compute / 2 if args.backward is None else args.backward
        for n, bandwidth in LINKS.items():
            step = step_on_paper(n, args.compute, backward, 4 * args.parameters, bandwidth)
            how = f"on paper, {bandwidth / 1e9:.0f} GB/s"
            speed = n * args.batch / step
            results["rows"].append(
                {"processes": n, "images_per_second": speed, "efficiency": args.compute / step, "how": how}
            )
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
