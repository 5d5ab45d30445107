"""Time and memory of drawing the noise of one training step, for the rows of one process.

    python benchmarks/random_numbers.py                                          # 4096 x 3x64x64 for 1 and 64 processes
    python benchmarks/random_numbers.py --batch 2048 --shape 3 256 256 --processes 64

`whole` draws the noise of the global batch and takes a slice, as an implementation without blocks does.
"""

from __future__ import annotations

from typing import Any

import measuring
import torch

from consistency_models.random import BatchRandom

COLUMNS = {
    "global batch": "{batch}",
    "image": "{shape}",
    "processes": "{processes}",
    "own rows, ms": "{milliseconds:.3g}",
    "own rows, MiB": "{megabytes:.3g}",
    "whole, ms": "{milliseconds_whole:.3g}",
    "whole, MiB": "{megabytes_whole:.3g}",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--batch", type=int, default=4096, help="images of the global batch")
    parser.add_argument("--shape", type=int, nargs=3, default=[3, 64, 64])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 64])
    args = parser.parse_args(arguments)
    results, rows = measuring.machine(args), []
    for processes in args.processes:
        own = BatchRandom(0, 0, args.batch, slice(0, args.batch // processes))
        whole = BatchRandom(0, 0, args.batch, slice(0, args.batch))
        row = {"batch": args.batch, "shape": "x".join(map(str, args.shape)), "processes": processes}
        for name, batch in {"": own, "_whole": whole}.items():
            draw = lambda batch=batch: batch.randn("noise", *args.shape, device=args.device)  # noqa: E731
            row[f"milliseconds{name}"] = 1e3 * measuring.median(
                [measuring.seconds(draw, args.device) for _ in range(args.rounds)]
            )
            row[f"megabytes{name}"] = len(batch) * torch.Size(args.shape).numel() * 4 / 2**20
        rows.append(row)
    results["rows"] = rows
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
