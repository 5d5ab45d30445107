"""Sampling in one step beside a bare loop and diffusers' pipeline, on the same weights, with and without PNG files.

    python benchmarks/sample_peers.py                                              # a small ADM at 32x32x3
    python benchmarks/sample_peers.py --images 512 --overrides network.model_channels=128

The network is `openai_adm`, which `to_diffusers` writes for diffusers' ConsistencyModelPipeline. The bare loop draws
the noise of each image with a generator of its own, calls the network on whole batches, converts to 8 bits, and writes
one file after the other, as the scripts of the papers do. All write the same number of files; the CPU seconds of the
writing threads count. Each round runs all in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import torch
from PIL import Image

from consistency_models.app import build
from consistency_models.app.tasks.archives import PNGWriter
from consistency_models.evaluation.features import to_bytes
from consistency_models.export.diffusers import to_diffusers
from consistency_models.sampling.batches import blocks
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import build_model

SMALL = ["network.model_channels=32", "network.num_blocks=1", "network.channel_mult=[1,2]", "network.head_channels=32"]
OVERRIDES = ["model=ct", "data=cifar10", "network=openai_adm", *SMALL]
COLUMNS = {
    "": "{name}",
    "files": "{files}",
    "images/s": "{images_per_second:.4g}",
    "CPU ms an image": "{cpu_milliseconds:.3g}",
    "CPU, of the bare loop": "{ratio:.2f}",
}


def bare_loop(generator: Generator, images: int, batch: int, folder: Path | None) -> None:
    """Sample and write without any of this project's code around the network."""
    device, start = next(generator.model.parameters()).device, 0
    while start < images:
        seeds = range(start, min(start + batch, images))
        noise = [torch.randn(generator.shape, generator=torch.Generator(device).manual_seed(k)) for k in seeds]
        with torch.no_grad():
            x = generator.model(torch.stack(noise) * 80.0, torch.full((len(seeds),), 80.0, device=device))
        pixels = (x * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for k, image in zip(seeds, pixels):
            if folder is not None:
                Image.fromarray(image).save(folder / f"{k:06d}.png")
        start += batch


def ours(generator: Generator, images: int, batch: int, folder: Path | None) -> None:
    """Sample and write as `task=sample` does."""
    parts, sampler = blocks(range(images), batch), generator.make_sampler(steps=1)
    with PNGWriter(lambda: None) as writer:
        for part, x in zip(parts, generator.batches(parts, sampler)):
            pixels = to_bytes(x).permute(0, 2, 3, 1).numpy()
            if folder is not None:
                writer.write([(folder / f"{k:06d}.png", image) for k, image in zip(part, pixels)])


def pipeline(pipe: Any, images: int, batch: int, folder: Path | None) -> None:
    """Sample and write with diffusers."""
    for start in range(0, images, batch):
        count = min(batch, images - start)
        found = pipe(batch_size=count, num_inference_steps=1, output_type="pt" if folder is None else "pil").images
        for k in range(count if folder is not None else 0):
            found[k].save(folder / f"{start + k:06d}.png")


def programs(args: Any, folder: Path) -> dict[str, Callable[[Path | None], None]]:
    """Return the programs, which sample and write to a folder, or only sample if it is None."""
    from diffusers import ConsistencyModelPipeline

    config = measuring.configured([*OVERRIDES, *args.overrides])
    torch.manual_seed(0)
    plain = build.build_generator(config, build_model(config).to(args.device).eval().requires_grad_(False))
    to_diffusers(plain, folder)
    pipe = ConsistencyModelPipeline.from_pretrained(folder).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    last = build.build_generator(config, build_model(config).to(args.device).eval().requires_grad_(False))
    last.model.network.to(memory_format=torch.channels_last)
    sizes = (args.images, args.batch)
    return {
        "bare loop": partial(bare_loop, plain, *sizes),
        "diffusers": partial(pipeline, pipe, *sizes),
        "ours": partial(ours, plain, *sizes),
        "ours, channels-last": partial(ours, last, *sizes),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--overrides", nargs="*", default=[], help=f"for train.py, after {' '.join(OVERRIDES)}")
    parser.add_argument("--images", type=int, default=256, help="images of each measurement")
    parser.add_argument("--batch", type=int, default=64, help="images of a network call")
    args = parser.parse_args(arguments)
    results, runs = measuring.machine(args), {}
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        for name, program in programs(args, Path(temporary) / "pipeline").items():
            program(None)  # warm
            for where in (None, files):
                runs[name, where] = partial(measuring.wall_and_cpu, partial(program, where))
        rounds = measuring.interleaved(runs, args.rounds)
    cpu = {key: [seconds for _, seconds in pairs] for key, pairs in rounds.items()}
    results["rows"] = [
        {
            "name": name,
            "files": "no" if where is None else "PNG",
            "images_per_second": args.images / measuring.median([wall for wall, _ in rounds[name, where]]),
            "cpu_milliseconds": 1e3 * measuring.median(cpu[name, where]) / args.images,
            "ratio": measuring.median([a / b for a, b in zip(cpu[name, where], cpu["bare loop", where])]),
        }
        for name, where in runs
    ]
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
