"""Cost of a forward-mode derivative compared with other passes of a network and with a central difference.

    python benchmarks/derivative.py                                              # the network of digits, this machine
    python benchmarks/derivative.py --overrides data=cifar10 network=ddpmpp data.batch_size=16

The derivative is that of the denoised images along the noise, as in `model=sct`. The error is the largest difference
from the derivative in float64, relative to the largest value of the latter, on random weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import measuring
import torch
from torch import Tensor, nn

from consistency_models.app import build
from consistency_models.methods import Method, Step
from consistency_models.noise import Levels
from consistency_models.random import BatchRandom

STEP = 1e-3
"""Step of the central difference, relative to the level."""


def example(method: Method, config: dict[str, Any], dtype: torch.dtype, device: str) -> Step:
    """Build a training step at levels from 0.02 to 80."""
    data, batch = config["data"], config["data"]["batch_size"]
    x, noise = torch.randn(2, batch, data["channels"], data["image_size"], data["image_size"], dtype=dtype).to(device)
    sigma = torch.logspace(-1.7, 1.9, batch, dtype=dtype, device=device)
    rows = BatchRandom(0, 0, batch, slice(0, batch))
    labels = method.encode_labels(torch.arange(batch, device=device) % max(data["network_classes"], 1), rows)
    step = Step(x, noise, x, Levels(sigma, torch.zeros_like(sigma)), labels, None, 0.0, rows)
    step.x_t = step.at(sigma)
    return step


def forward_mode(method: Method, step: Step) -> Tensor:
    """Compute the derivative by `Method.derivative`, in its default mode."""
    sigma = step.levels.high
    function = lambda x, level: method.model(x, level, step.labels)  # noqa: E731
    return method.derivative(step, function, (step.x_t, sigma), (step.noise, torch.ones_like(sigma)))[1]


def difference(method: Method, step: Step) -> Tensor:
    """Compute the derivative by `Method.derivative` with `model.difference`, a central difference in two passes."""
    with patch.object(method, "difference", STEP):
        return forward_mode(method, step)


def passes(method: Method, step: Step) -> dict[str, Callable[[], Any]]:
    """Return the passes to time, by name."""

    def forward() -> None:
        with torch.no_grad():
            method.model(step.x_t, step.levels.high, step.labels)

    def backward() -> None:
        method.zero_grad()
        method.model(step.x_t, step.levels.high, step.labels).square().mean().backward()

    return {
        "forward": forward,
        "forward + backward": backward,
        "derivative, forward mode": lambda: forward_mode(method, step),
        "derivative, central difference": lambda: difference(method, step),
    }


COLUMNS = {
    "pass": "{pass}",
    "ms": "{milliseconds:.4g}",
    "forward passes": "{forwards:.2f}",
    "error": "{error:.1e}",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--overrides", nargs="*", default=[], help="for train.py, such as data=cifar10 network=small")
    args = parser.parse_args(arguments)
    results = measuring.machine(args)
    with tempfile.TemporaryDirectory() as folder:
        config = measuring.configured(["model=sct", *args.overrides], folder)
    torch.manual_seed(0)
    method = build.build_method(config).to(args.device).train()
    for parameter in method.model.parameters():  # the derivative of an untrained network is almost zero
        nn.init.normal_(parameter, std=0.1)
    step = example(method, config, torch.float32, args.device)
    timed = {name: lambda run=run: measuring.seconds(run, args.device) for name, run in passes(method, step).items()}
    for run in timed.values():
        run()
    medians = {name: measuring.median(times) for name, times in measuring.interleaved(timed, args.rounds).items()}
    values = {name: run(method, step) for name, run in zip(list(timed)[2:], (forward_mode, difference))}
    doubled = {key: value.double() for key, value in vars(step).items() if isinstance(value, Tensor)}
    exact = Step(**vars(step) | doubled | {"levels": step.levels.to(args.device, torch.float64)})
    exact.x_t = exact.at(exact.levels.high)
    truth = forward_mode(method.double(), exact)
    errors = {name: ((value - truth).abs().max() / truth.abs().max()).item() for name, value in values.items()}
    results["network"] = config["network"]["_target_"].rpartition(".")[2]
    results["batch"] = config["data"]["batch_size"]
    results["rows"] = [
        {
            "pass": name,
            "milliseconds": seconds * 1e3,
            "forwards": seconds / medians["forward"],
            "error": errors.get(name, 0.0),
        }
        for name, seconds in medians.items()
    ]
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
