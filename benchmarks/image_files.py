"""Time and memory of a data set of many small image files: first decoding, later starts, batches from encoded images.

    python benchmarks/image_files.py                                          # 20,000 PNG files of 32x32
    python benchmarks/image_files.py --images 20000 300000 --size 8 --parts first start
    python benchmarks/image_files.py --rounds 5 --parts first torchvision     # both alternating

Each part is a process of its own, so that its peak of memory is known. Each round runs all parts in turn, and the
medians are shown. A start includes digest and σ_data of the set,
which every run needs. The last row extrapolates the last two sizes to 1.28 million images on a straight line.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np

LARGE = 1_281_167  # training images of ImageNet
CLASSES = 100
PARTS = ("first", "start", "batches", "torchvision")
COLUMNS = {
    "part": "{part}",
    "images": "{images:,}",
    "seconds": "{seconds:.3g}",
    "images/s": "{images_per_second:.3g}",
    "CPU seconds": "{cpu_seconds:.3g}",
    "peak memory above the imports, MB": "{megabytes:.0f}",
}


def write_files(folder: Path, images: int, size: int) -> Path:
    """Write PNG files of random pixels in folders of classes. A thousand different files are repeated."""
    from PIL import Image

    contents = []
    for k in range(1000):
        file = io.BytesIO()
        pixels = np.random.default_rng(k).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        contents.append(file.getvalue())
    for k in range(CLASSES):
        (folder / f"{k:03d}").mkdir(parents=True)
    for k in range(images):
        (folder / f"{k % CLASSES:03d}" / f"{k:08d}.png").write_bytes(contents[k % 1000])
    return folder


def peak() -> float:
    """Peak memory of this process and of its largest child, in MB."""
    return sum(resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def cpu_seconds() -> float:
    """Seconds on a core of this process and of its ended children, which do not depend on other work of the machine."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(part: str, folder: Path, workers: int) -> dict[str, Any]:
    """Measure one part in this process."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from consistency_models.data import image_folder
    from consistency_models.data.batch import Slot
    from consistency_models.data.sampler import StepSampler

    before, began, used = peak(), time.perf_counter(), cpu_seconds()
    if part == "torchvision":
        loader = DataLoader(datasets.ImageFolder(folder, transforms.PILToTensor()), batch_size=256, num_workers=workers)
        images = sum(len(batch) for batch, _ in loader)
    elif part == "batches":
        from consistency_models.data.workers import WorkerLoader

        source = image_folder(folder, storage="encoded", cache_dir=folder.parent / "cache")
        batches = min(40, -(-source.n // 256))
        sampler = StepSampler(source.n, 256, seed=0)
        requests: list[Slot] = [slot for slot, _ in zip(sampler, range(batches))]
        began, used = time.perf_counter(), cpu_seconds()
        images = sum(map(len, WorkerLoader(source, sampler=requests, num_workers=workers)))
    else:
        source = image_folder(folder, cache_dir=folder.parent / "cache")
        images, _ = source.n, (source.digest, source.sigma_data)
    seconds = time.perf_counter() - began
    return {
        "images": images,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - used,
        "megabytes": peak() - before,
    }


def in_a_process(part: str, folder: Path, workers: int) -> dict[str, Any]:
    """Measure one part in a process of its own. The first decoding finds no cache."""
    if part == "first":
        shutil.rmtree(folder.parent / "cache", ignore_errors=True)
    command = [sys.executable, __file__, "--measure", part, str(folder), "--workers", str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.set_defaults(rounds=1)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000])
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workers", type=int, default=2, help="of batches and torchvision")
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), args.workers)))
        return {}
    results, rows = measuring.machine(args), []
    for images in args.images:
        root = Path(tempfile.mkdtemp())
        try:
            folder = write_files(root / "images", images, args.size)
            time.sleep(3)  # folders that changed in the last two seconds are not indexed
            runs = {part: partial(in_a_process, part, folder, args.workers) for part in args.parts}
            for part, found in measuring.interleaved(runs, args.rounds).items():
                medians = {name: measuring.median([row[name] for row in found]) for name in found[0]}
                rows.append({"part": part, **medians, "images": found[0]["images"]})
        finally:
            shutil.rmtree(root)
    for part in args.parts:
        first, last = (*[row for row in rows if row["part"] == part] * 2,)[-2:]
        if first["images"] < last["images"]:
            share = (LARGE - first["images"]) / (last["images"] - first["images"])
            line = {
                name: first[name] + share * (last[name] - first[name])
                for name in ("seconds", "cpu_seconds", "megabytes")
            }
            rows.append({"part": f"{part} (line)", "images": LARGE, **line})
    for row in rows:
        row["images_per_second"] = row["images"] / row["seconds"]
    results["rows"] = rows
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
