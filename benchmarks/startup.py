"""Waiting times: for --help, for the refusal of a mistake, for the first step, for the next job of a multirun.

    python benchmarks/startup.py
    python benchmarks/startup.py --overrides data=cifar10 data.root=FOLDER network=small data.batch_size=64

Every time is the median over new processes, which run in turn. The import of torch and lightning is the lower bound of
the start of a training. CPU seconds are user and system time, which hardly depend on other work of the machine.
"""

from __future__ import annotations

import os
import resource
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
COLUMNS = {
    "what": "{what}",
    "seconds": "{seconds:.2f}",
    "least": "{least:.2f}",
    "most": "{most:.2f}",
    "CPU seconds": "{cpu_seconds:.2f}",
}
Times = tuple[float, float]
"""Wall seconds and CPU seconds."""


def cpu_seconds() -> float:
    """Return user and system time of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def process(*command: str, ends: int = 0) -> Times:
    """Measure the time until a command ends.

    Raises:
        RuntimeError: the exit code is not `ends`.
    """
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), cpu_seconds()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        took = time.perf_counter() - start, cpu_seconds() - cpu
    if done.returncode != ends:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}, not {ends}:\n{done.stderr}")
    return took


def first_step(overrides: list[str]) -> Times:
    """Measure the time from the command to the end of the first training step."""
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
        end, cpu = map(float, file.read_text().split())
        return end - start, cpu


def further_job(n: int, overrides: list[str]) -> Times:
    """Measure the time of one more job of a multirun, from multiruns of n jobs and of one, of one step each."""

    def jobs(count: int) -> Times:
        return process(*TRAIN, *SHORT, *overrides, f"seed={','.join(map(str, range(count)))}", "--multirun")

    many, one = jobs(n), jobs(1)
    return (many[0] - one[0]) / (n - 1), (many[1] - one[1]) / (n - 1)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--overrides", nargs="*", default=[], help="overrides of train.py")
    parser.add_argument("--jobs", type=int, default=4, help="jobs of the longer of two compared multiruns")
    args = parser.parse_args(arguments)
    results = measuring.machine(args)
    runs: dict[str, Callable[[], Times]] = {
        "import torch, lightning": lambda: process(sys.executable, "-c", "import torch, lightning"),
        "import consistency_models": lambda: process(sys.executable, "-c", "import consistency_models"),
        "train.py --help": lambda: process(*TRAIN, "--help"),
        "train.py trainer.max_step=1 (refused)": lambda: process(*TRAIN, "trainer.max_step=1", ends=2),
        "train.py, to the end of the first step": lambda: first_step(args.overrides),
        "a further job of a multirun, with its one step and its checkpoint": lambda: further_job(
            args.jobs, args.overrides
        ),
    }
    times = measuring.interleaved(runs, args.rounds)
    rows = []
    for what, values in times.items():
        wall, cpu = zip(*values)
        seconds = {"seconds": measuring.median(wall), "least": min(wall), "most": max(wall)}
        rows.append({"what": what, **seconds, "cpu_seconds": measuring.median(cpu)})
    results["rows"] = rows
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
