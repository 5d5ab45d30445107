"""Time of decoding a large JPEG file with and without `data.source.draft`, and the change of the pixels.

    python benchmarks/jpeg_draft.py                                     # 2048x1536 at 64x64
    python benchmarks/jpeg_draft.py --width 1024 --height 768 --image-size 32

The photograph is synthetic: noise with the spectrum 1/f of natural images.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import measuring
import numpy as np
from PIL import Image

from consistency_models.data.decoding import Decoder

COLUMNS = {
    "draft": "{draft}",
    "CPU ms an image": "{cpu_milliseconds:.3g}",
    "faster": "{speed_up:.2f}",
    "mean change, of 255": "{mean_change:.2f}",
    "largest change": "{largest_change}",
}


def photograph(width: int, height: int) -> bytes:
    """Encode a synthetic photograph as JPEG."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1 / max(width, height)
    noise = np.random.default_rng(0).standard_normal((height, width, 3))
    pixels = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / frequency[..., None], axes=(0, 1)).real
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=90)
    return file.getvalue()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--height", type=int, default=1536)
    parser.add_argument("--image-size", type=int, default=64)
    args = parser.parse_args(arguments)
    results, content = measuring.machine(args), photograph(args.width, args.height)
    decoders = {draft: Decoder(args.image_size, draft=draft) for draft in (False, True)}
    pixels = {draft: decoder(content).astype(int) for draft, decoder in decoders.items()}
    runs = {draft: partial(measuring.wall_and_cpu, partial(each, content)) for draft, each in decoders.items()}
    rounds = measuring.interleaved(runs, args.rounds)
    cpu = {draft: measuring.median([seconds for _, seconds in pairs]) for draft, pairs in rounds.items()}
    results["rows"] = [
        {
            "draft": draft,
            "cpu_milliseconds": 1e3 * cpu[draft],
            "speed_up": cpu[False] / cpu[draft],
            "mean_change": float(np.abs(pixels[draft] - pixels[False]).mean()),
            "largest_change": int(np.abs(pixels[draft] - pixels[False]).max()),
        }
        for draft in decoders
    ]
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
