"""Waiting times: for --help, for the refusal of a mistake, for the first step, for the next job of a multirun.

    python benchmarks/startup.py
    python benchmarks/startup.py --overrides data=cifar10 data.root=FOLDER network=small data.batch_size=64

Every time is the median over new processes, which run in turn. The import of torch and lightning is the lower bound of
the start of a training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring

HERE = Path(__file__).resolve().parent
TRAIN = [sys.executable, str(measuring.ROOT / "train.py")]
SHORT = ("trainer=cpu", "logger=csv", "trainer.max_steps=1", "callbacks.samples=null", "callbacks.validation=null")
COLUMNS = {"what": "{what}", "seconds": "{seconds:.2f}", "least": "{least:.2f}", "most": "{most:.2f}"}


def process(*command: str, ends: int = 0) -> float:
    """Measure the seconds until a command ends.

    Raises:
        RuntimeError: the exit code is not `ends`.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        took = time.perf_counter() - start
    if done.returncode != ends:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}, not {ends}:\n{done.stderr}")
    return took


def first_step(overrides: list[str]) -> float:
    """Measure the seconds from the command to the end of the first training step."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "first_step"
        environment = os.environ | {"FIRST_STEP": str(file), "PYTHONPATH": str(HERE)}
        more = [
            "+callbacks.first_step._target_=first_step.FirstStep",
            "callbacks.checkpoint=null",
            "callbacks.signals=null",
        ]
        start = time.time()
        done = subprocess.run(
            [*TRAIN, *SHORT, *more, *overrides],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not file.exists():
            raise RuntimeError(f"no first step:\n{done.stderr}")
        return float(file.read_text()) - start


def jobs(n: int, overrides: list[str]) -> float:
    """Measure the seconds of a multirun of n jobs of one step each."""
    seeds = f"seed={','.join(map(str, range(n)))}"
    return process(*TRAIN, *SHORT, *overrides, seeds, "--multirun")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--overrides", nargs="*", default=[], help="overrides of train.py")
    parser.add_argument("--jobs", type=int, default=4, help="jobs of the longer of two compared multiruns")
    args = parser.parse_args(arguments)
    results = measuring.machine(args)
    runs: dict[str, Callable[[], float]] = {
        "import torch, lightning": lambda: process(sys.executable, "-c", "import torch, lightning"),
        "import consistency_models": lambda: process(sys.executable, "-c", "import consistency_models"),
        "train.py --help": lambda: process(*TRAIN, "--help"),
        "train.py trainer.max_step=1 (refused)": lambda: process(*TRAIN, "trainer.max_step=1", ends=2),
        "train.py, to the end of the first step": lambda: first_step(args.overrides),
        "a further job of a multirun, with its one step and its checkpoint": lambda: (
            (jobs(args.jobs, args.overrides) - jobs(1, args.overrides)) / (args.jobs - 1)
        ),
    }
    times = measuring.interleaved(runs, args.rounds)
    results["rows"] = [
        {"what": what, "seconds": measuring.median(values), "least": min(values), "most": max(values)}
        for what, values in times.items()
    ]
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
