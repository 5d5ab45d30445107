"""Shared functions of the benchmarks: configurations, timing on any device, interleaved repeats, tables, reports."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

# Same value as in app/main.py; OpenMP reads the variable when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from torch import nn

from consistency_models.app.checks.relations import needs_teacher

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
os.environ["PROJECT_ROOT"] = str(ROOT)  # configurations read the variable, which app/main.py sets otherwise
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def configured(overrides: Sequence[str], folder: str | Path = "runs") -> dict[str, Any]:
    """Compose and resolve the configuration of `python train.py OVERRIDES`.

    Data of a folder that is not given are replaced by random images, and a missing teacher by an untrained network.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"paths.output={folder}", *overrides])
    if OmegaConf.is_missing(config.data, "root") or config.data.source.get("root", "") is None:
        config.data.root = "random"
        shape = {"channels": config.data.channels, "image_size": config.data.image_size}
        with open_dict(config):
            config.data.source = {"_target_": f"{__name__}.random_images", **shape, "classes": config.data.num_classes}
    config = OmegaConf.to_container(config, resolve=True)
    if needs_teacher(config) and not config["teacher"]["_target_"]:
        here = f"{__name__}.untrained"
        config["teacher"] = {"_target_": here, "_recursive_": False, "network": config["network"], "path": "untrained"}
    return config


def random_images(channels: int, image_size: int, classes: int, n: int = 10_000) -> Any:
    """Build a data set of random images, which cost the same time as real images."""
    from consistency_models.data.image_set import ImageSet

    images = torch.randint(256, (n, channels, image_size, image_size), dtype=torch.uint8)
    return ImageSet("random", images, torch.arange(n) % classes, classes)


def untrained(network: dict[str, Any], path: str) -> nn.Module:
    """Build a teacher with the network `network` and untrained weights, which costs the same time as a trained one."""
    from consistency_models.noise.preconditioned import Preconditioned
    from consistency_models.noise.preconditioning import EDM

    teacher = Preconditioned(instantiate(network), EDM())
    teacher.origin = {"path": path, "digest": ""}
    return teacher


def wait(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Measure the wall time of one call, as the mean over `repeats` calls."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wall_and_cpu(function: Callable[[], Any]) -> tuple[float, float]:
    """Measure the wall seconds and the CPU seconds (user and system time) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Call each run `rounds` times and return the values. Each round calls all runs in turn, so that a disturbance of
    the machine affects all runs alike."""
    values: dict[str, list[Any]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            values[name].append(run())
    return values


def peak(device: str, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a large matrix product, the best of five."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


def reset_memory(device: str) -> None:
    """Reset the peak memory of the GPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def median(values: Sequence[float]) -> float:
    """Return the median of repeated measurements."""
    return statistics.median(values)


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Format rows as a Markdown table; `columns`: title → format of the row's value, such as "{seconds:.3g}"."""
    lines = [f"| {' | '.join(columns)} |", "|--" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(form.format(**row) for form in columns.values())} |" for row in rows)])


def parser(description: str, rounds: bool = True) -> argparse.ArgumentParser:
    """Build a parser with the arguments that all benchmarks share, without --rounds for a benchmark of no times."""
    shared = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds:
        shared.add_argument("--rounds", type=int, default=5, help="interleaved repeats; the median is shown")
    shared.add_argument("--threads", type=int, default=torch.get_num_threads())
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    shared.add_argument("--json", type=Path, help="file to which the results are written as JSON")
    return shared


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Return the command, date, device, threads and torch version of a measurement; sets the number of threads."""
    torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "device": f"{name}, {torch.backends.cpu.get_cpu_capability()}" if args.device == "cpu" else name,
        "threads": args.threads,
        "torch": torch.__version__,
    }


def report(results: dict[str, Any], columns: dict[str, str], file: Path | None) -> None:
    """Print the machine, the date and the table of `results["rows"]`; write the results as JSON if `file` is given."""
    print(f"{results['device']}, {results['threads']} threads, torch {results['torch']}, {results['date']}")
    print(table(results["rows"], columns))
    if file:
        file.write_text(json.dumps(results, indent=1))
