"""Images per second in one and in a few steps, and the latency of a single image.

    python benchmarks/sample.py                                                    # the small network, digits
    python benchmarks/sample.py --overrides data=cifar10 network=ddpmpp --batches 1 64 --steps 1 2 4 --levers bf16

Weights are untrained, since the time does not depend on them. The time includes noise, labels and the copy to the CPU.
"""

from __future__ import annotations

import argparse
from typing import Any

import measuring
import torch

from consistency_models.app import build
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import build_model

LEVERS = ("bf16", "channels_last", "compile")
COLUMNS = {
    "network": "{network}",
    "lever": "{lever}",
    "steps": "{steps}",
    "batch": "{batch}",
    "images/s": "{images_per_second:.4g}",
    "speed-up": "{speed_up:.2f}",
    "latency, ms": "{milliseconds:.3g}",
}


def build_generator(args: argparse.Namespace, lever: str) -> Generator:
    """Build the generator with a lever, or with several joined by +."""
    config = measuring.configured(args.overrides)
    torch.manual_seed(0)
    model = build_model(config).to(args.device).eval().requires_grad_(False)
    if "channels_last" in lever:
        model.network.to(memory_format=torch.channels_last)
    model.autocast = torch.bfloat16 if "bf16" in lever else None
    return build.build_generator(config, model)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each lever, step count and batch."""
    runs = {}
    for lever in ["none", *args.levers]:
        for batch in args.batches:
            generator = build_generator(args, lever)
            if "compile" in lever:
                generator.compile(batch)
            for steps in args.steps:

                def run(generator: Generator = generator, steps: int = steps, batch: int = batch) -> float:
                    return measuring.seconds(
                        lambda: generator.sample(batch, steps=steps, batch_size=batch), args.device, args.repeats
                    )

                run()  # compiles
                runs[lever, steps, batch] = run
    medians = {key: measuring.median(values) for key, values in measuring.interleaved(runs, args.rounds).items()}
    network = next((o.partition("=")[2] for o in args.overrides if o.startswith("network=")), "default")
    return [
        {
            "network": network,
            "lever": lever,
            "steps": steps,
            "batch": batch,
            "seconds": median,
            "milliseconds": median * 1e3,
            "images_per_second": batch / median,
            "speed_up": medians["none", steps, batch] / median,
        }
        for (lever, steps, batch), median in medians.items()
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--overrides", nargs="*", default=[], help="for train.py, such as data=cifar10 network=small")
    parser.add_argument("--levers", nargs="*", default=[], help=f"{', '.join(LEVERS)}, or several joined by +")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--repeats", type=int, default=3, help="calls per measurement; the mean counts")
    args = parser.parse_args(arguments)
    results = measuring.machine(args)
    results["rows"] = measure(args)
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
