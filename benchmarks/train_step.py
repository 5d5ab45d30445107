"""Cost of a training step by parts, and gain of each lever, in Lightning's loop with the callbacks of `train.py`.

    python benchmarks/train_step.py                                                 # iCT on digits, this machine
    python benchmarks/train_step.py --models all --steps 5                          # every method
    python benchmarks/train_step.py --overrides data=cifar10 network=small data.batch_size=64 --levers bf16
    python benchmarks/train_step.py --models ict --overrides data=cifar10 network=ddpmpp data.batch_size=512 \\
        --levers bf16 bf16+channels_last bf16+channels_last+compile
    python benchmarks/train_step.py --models sct meanflow --levers differences     # forward mode against differences

Each lever is compared with the same training without levers in the same run; each round runs all levers in turn. The
row "bare loop" is iCT's step in a loop of PyTorch (`bare_loop.py`), and "bare loop in Lightning" is the same step in
Lightning's loop, without callbacks and loggers. "Outside" is the time outside the networks' passes, and the last column
is its ratio to that of the bare loop. The defaults are those of `train.py`: `channels_last=auto`. A round is a separate
training, whose first steps do not count. The time of a part is the median over all steps of all rounds. On a GPU,
events measure the time of the device, so that the measurement causes no waiting.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import Any

import bare_loop
import measuring
from case import Case
from stopwatch import PARTS

from consistency_models.callbacks.memory import peak_bytes

MODELS = sorted(
    path.stem
    for path in (measuring.CONF / "model").glob("*.yaml")
    if "override /network: diffusers" not in path.read_text()  # its network is that of a folder of diffusers
)
LEVERS = {
    "bf16": ["trainer.precision=bf16-mixed"],
    "fp16": ["trainer.precision=16-mixed"],
    "channels_last": ["channels_last=true"],
    "contiguous": ["channels_last=false"],
    "compile": ["compile=true"],
    "checkpointing": ["++network.checkpointing=true"],
    "foreach": ["++optimizer.foreach=true"],
    "no_foreach": ["++optimizer.foreach=false"],
    "fused": ["++optimizer.foreach=null", "++optimizer.fused=true"],
    "cudnn_benchmark": ["+trainer.benchmark=true"],
    "log_every_step": ["callbacks.metrics.every_n_steps=1"],
    "no_log": ["callbacks.metrics.every_n_steps=1000000000"],
    "no_ema": ["callbacks.ema=null"],
    "workers": ["data.workers=1"],
    "differences": ["model.difference=1e-3"],
    "on_host": ["+data.resident=false"],
}
BARE_LOOPS = {"bare loop in Lightning": bare_loop.timed_in_lightning, "bare loop": bare_loop.timed}
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def overrides_of(lever: str) -> list[str]:
    """Return the overrides of a lever; for several levers joined by +, such as "bf16+compile", those of all."""
    return [override for name in lever.split("+") for override in LEVERS[name]]


def measure(model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each lever."""
    rows, cases, peaks = [], {}, {}
    for lever in ["none", *args.levers]:
        more = [] if lever == "none" else overrides_of(lever)
        cases[lever] = Case([f"model={model}", *args.overrides, *more], args.device, CLOCKS[args.clock])
        measuring.reset_memory(args.device)
        start = time.perf_counter()
        (step,) = cases[lever].timed(args.warm, 1)  # compilation
        peaks[lever] = peak_bytes(args.device)
        # Of use if the machine is lent for a short time, and the table is not reached.
        spent = time.perf_counter() - start
        print(f"{model}, {lever}: {sum(step.values()):.3g} s a step, {spent:.0f} s with all before", file=sys.stderr)
    flops, reads = cases["none"].audit()
    runs = {lever: lambda case=case: case.timed(args.warm, args.steps) for lever, case in cases.items()}
    if model == "ict":
        for name, loop in BARE_LOOPS.items():
            cases[name], peaks[name] = cases["none"], peaks["none"]
            runs[name] = lambda loop=loop: loop(cases["none"], args.warm, args.steps)
    rounds = measuring.interleaved(runs, args.rounds)
    matrix_products = {name: measuring.peak(args.device, dtype) for name, dtype in measuring.DTYPES.items()}
    for lever, case in cases.items():
        steps = [step for steps_of_round in rounds[lever] for step in steps_of_round]
        totals = [sum(step.values()) for step in steps]
        total = measuring.median(totals)
        parts = {part: measuring.median([step[part] for step in steps]) for part in PARTS}
        networks = parts["student"] + parts["target"] + parts["backward"]
        rows.append(
            {
                "model": model,
                "network": case.config["network"]["_target_"].rpartition(".")[2],
                "parameters": sum(p.numel() for p in case.method.model.parameters()),
                "data": case.config["data"]["name"],
                "batch": case.batch,
                "lever": lever,
                "seconds": total,
                "milliseconds": total * 1e3,
                "spread": [min(totals), max(totals)],
                "images_per_second": case.batch / total,
                "parts": parts,
                "shares": {part: value / sum(parts.values()) for part, value in parts.items()},
                "overhead": 1 - networks / sum(parts.values()),
                "outside_milliseconds": 1e3 * (sum(parts.values()) - networks),
                "teraflop_per_second": flops / total / 1e12,
                "of_matmul_peak": flops / total / matrix_products["bf16" if "16" in lever else "float32"],
                "peak_memory_mebibytes": peaks[lever] / 2**20,
                "host_reads_a_step": len(reads) if lever not in BARE_LOOPS else 0,
                "host_reads": reads if lever not in BARE_LOOPS else [],
            }
        )
    for row in rows:
        row["speed_up"] = rows[0]["seconds"] / row["seconds"]
        bare = rows[-1] if rows[-1]["lever"] == "bare loop" else None
        row["of_bare_loop"] = round(row["outside_milliseconds"] / bare["outside_milliseconds"], 2) if bare else None
    return rows


COLUMNS = {
    "model": "{model}",
    "lever": "{lever}",
    "images/s": "{images_per_second:.4g}",
    "speed-up": "{speed_up:.2f}",
    "step, ms": "{milliseconds:.4g}",
    **{part: f"{{shares[{part}]:.1%}}" for part in PARTS},
    "not the networks": "{overhead:.1%}",
    "outside, ms": "{outside_milliseconds:.2f}",
    "of bare loop": "{of_bare_loop}",
    "of matmul peak": "{of_matmul_peak:.0%}",
    "peak MiB": "{peak_memory_mebibytes:.0f}",
    "host reads": "{host_reads_a_step}",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["ict"], choices=[*MODELS, "all"])
    parser.add_argument("--levers", nargs="*", default=[], help=f"{', '.join(LEVERS)}, or several joined by +")
    parser.add_argument("--overrides", nargs="*", default=[], help="for train.py, such as data=cifar10 network=small")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each round")
    parser.add_argument("--warm", type=int, default=6, help="steps before them; RAdam's first five are slower")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: of the main thread, without other work")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="lightning")
    results = measuring.machine(args)
    models = MODELS if "all" in args.models else args.models
    results["rows"] = [row for model in models for row in measure(model, args)]
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
