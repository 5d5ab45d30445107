"""What the benchmarks share: configurations, clocks for any device, interleaved repeats, tables, where it was."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

# As app/main.py sets it; OpenMP reads it when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from torch import nn

from consistency_models.app.checks.relations import needs_teacher

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
os.environ["PROJECT_ROOT"] = str(ROOT)  # what configurations refer to, as app/main.py makes it known
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def configured(overrides: Sequence[str], folder: str | Path = "runs") -> dict[str, Any]:
    """The resolved configuration of `python train.py OVERRIDES`.

    Images that need a folder and are given none are random; a teacher that is needed and not given is untrained.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"paths.output={folder}", *overrides])
    if OmegaConf.is_missing(config.data, "root"):
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
    """Images that cost what real ones do."""
    from consistency_models.data.image_set import ImageSet

    images = torch.randint(256, (n, channels, image_size, image_size), dtype=torch.uint8)
    return ImageSet("random", images, torch.arange(n) % classes, classes)


def untrained(network: dict[str, Any], path: str) -> nn.Module:
    """A teacher with the network of `network` and fresh weights: as dear as a trained one."""
    from consistency_models.noise.preconditioning import EDM, Preconditioned

    teacher = Preconditioned(instantiate(network), EDM())
    teacher.origin = {"path": path, "digest": ""}
    return teacher


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Wall time of one call."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    wait(device)
    return (time.perf_counter() - start) / repeats


def interleaved(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each run returns, `rounds` times: the rounds go through all of them in turn, so that a disturbance of the
    machine meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


def memory(device: str) -> int:
    """Peak bytes: of the GPU since `reset_memory`, of the process since its start."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_memory(device: str) -> None:
    """Begin to look for the GPU's peak anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def median(values: Sequence[float]) -> float:
    """Of the repeats."""
    return statistics.median(values)


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Markdown; `columns`: title → format of the row's value, such as "{seconds:.3g}"."""
    lines = [f"| {' | '.join(columns)} |", "|--" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(form.format(**row) for form in columns.values())} |" for row in rows)])


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments of every benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="interleaved repeats, of which the median is shown")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    made.add_argument("--json", type=Path, help="write the numbers here, too")
    return made


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Where, with what and by which command it was measured."""
    torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "device": f"{name}, {torch.backends.cpu.get_cpu_capability()}" if args.device == "cpu" else name,
        "threads": args.threads,
        "torch": torch.__version__,
    }


def report(found: dict[str, Any], columns: dict[str, str], file: Path | None) -> None:
    """Print where and when, and the table of `found["rows"]`; write all of it as JSON if wanted."""
    print(f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['date']}")
    print(table(found["rows"], columns))
    if file:
        file.write_text(json.dumps(found, indent=1))
