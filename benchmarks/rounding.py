"""Rounding of half precision against the difference of outputs at neighbouring levels, which consistency methods train.

    python benchmarks/rounding.py RUN                  # a trained model: run folder, checkpoint or official file
    python benchmarks/rounding.py RUN --n 16 --device cpu

Samples of the model get noise at levels t and s = (1 - gap)·t, ln t ~ N(-1.1, 2²). For each gap and precision:

    difference  median of ‖f(x + t·z, t) - f(x + s·z, s)‖, in float32
    error       median of the error of this difference over its norm
    cosine      median of the cosine between it and that of float32

On CUDA, float32 is exact float32, and the row "tf32" has PyTorch's default convolutions.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import measuring
import torch
from torch import Tensor

from consistency_models import conditions, load
from consistency_models.noise.schedules import per_image

COLUMNS = {
    "gap": "{gap:.2%}",
    "precision": "{precision}",
    "difference": "{difference:.3g}",
    "error": "{error:.3g}",
    "cosine": "{cosine:.3f}",
}
HALF = {"bf16": torch.bfloat16, "float16": torch.float16}


def differences(model: Any, x: Tensor, t: Tensor, gap: float, z: Tensor, labels: Any, precision: str) -> Tensor:
    """Return f(x + t·z, t) - f(x + s·z, s) in a precision, (B, pixels)."""
    half = HALF.get(precision)
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=precision != "float32")
    with torch.no_grad(), exact, torch.autocast(x.device.type, half) if half else contextlib.nullcontext():
        high, low = (model(x + per_image(level, x) * z, level, labels).float() for level in (t, (1 - gap) * t))
    return (high - low).flatten(1)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each gap and precision."""
    generator = load(args.run, device=args.device)
    x = generator.sample(args.n, steps=max(generator.steps)).to(args.device)
    torch.manual_seed(0)
    z, t = torch.randn_like(x), torch.exp(2 * torch.randn(args.n, device=args.device) - 1.1).clamp(0.002, 80)
    labels = conditions.encode(generator.model.network, generator.labels(torch.arange(args.n)))
    rows = []
    for gap in (2.0**-k for k in range(1, args.halvings + 1)):
        exact = differences(generator.model, x, t, gap, z, labels, "float32")
        for precision in [*(["tf32"] if args.device == "cuda" else []), *HALF]:
            found = differences(generator.model, x, t, gap, z, labels, precision)
            error = ((found - exact).norm(dim=1) / exact.norm(dim=1)).median().item()
            cosine = torch.cosine_similarity(found, exact).median().item()
            size = exact.norm(dim=1).median().item()
            rows.append({"gap": gap, "precision": precision, "difference": size, "error": error, "cosine": cosine})
    return rows


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__, rounds=False)
    parser.add_argument("run", help="what `load` takes")
    parser.add_argument("--n", type=int, default=64, help="images")
    parser.add_argument("--halvings", type=int, default=10, help="gaps 1/2, 1/4, … of this number")
    args = parser.parse_args(arguments)
    results = measuring.machine(args)
    results["rows"] = measure(args)
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
