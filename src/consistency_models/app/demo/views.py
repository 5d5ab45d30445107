"""From the values of the widgets of the live page to HTML. Nothing here needs the extra `demo`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from consistency_models.app.demo import html
from consistency_models.app.demo.answers import EDITS, Settings, edited, interpolated, sampled
from consistency_models.app.demo.runs import Condition, Run
from consistency_models.evaluation.features import to_float

__all__ = ["IN_TURN", "background", "brushed", "edits", "interpolation", "read_canvas", "samples", "title"]

IN_TURN = -1
"""Value of the class menu: the classes take turns."""


def title(run: Run) -> str:
    """The name of a run, and what it is."""
    config, size = run.generator.config, sum(p.numel() for p in run.generator.model.parameters())
    method, data = ((config.get(group) or {}).get("name") for group in ("model", "data"))
    known = (f"{method} on {data}" if method and data else "", f"{size / 1e6:.3g} M parameters")
    return html.heading(run.name, ", ".join(filter(None, (*known, f"weights {run.generator.weights}"))))


def _controls(condition: Any, guidance: Any, seed: Any, steps: Any, n: Any) -> tuple[Condition, int, int, int]:
    """The values of the widgets; a field that the user has emptied counts as 0."""
    if isinstance(condition, str):
        condition = (condition, float(guidance))
    return None if condition == IN_TURN else condition, int(seed or 0), int(steps), int(n)


def samples(run: Run, *shared: Any) -> str:
    """Samples, and the calls of the network from noise to image k."""
    condition, seed, steps, n = _controls(*shared[:5])
    answer, k = sampled(run, condition, seed, steps, n), min(int(shared[5]), n - 1)
    rows = {
        "input": run.pictures(torch.stack([call.scaled[k] for call in answer.calls])),
        "output": run.pictures(torch.stack([call.denoised[k] for call in answer.calls])),
    }
    calls = f"{_count(answer.steps, 'step')}, {_count(len(answer.calls), 'network call')} an image"
    return (
        html.line(f"{calls}, {1000 * answer.seconds:.0f} ms")
        + html.row(run.shown(answer.images), run.class_names(condition, n))
        + html.line(f"From noise to image {k}: the input of the network, and its output, at each level σ")
        + html.table([f"σ {call.sigma:.3g}" for call in answer.calls], rows)
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def background(run: Run, scale: int, *shared: Any) -> dict[str, Any]:
    """Image k of the samples, enlarged, as the background of the canvas."""
    condition, seed, steps, n = _controls(*shared[:5])
    image = sampled(run, condition, seed, steps, n).images[min(int(shared[5]), n - 1)]
    pixels = run.pictures(image[None])[0].expand(3, -1, -1).permute(1, 2, 0).numpy()
    return {"background": Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)), "layers": [], "composite": None}


def edits(
    run: Run, canvas: dict[str, Any] | None, edit: str, points: int, patch: int, sigma: float, *shared: Any
) -> str:
    """What the model is given, and its results with different noise.

    Raises:
        ValueError: the canvas is empty, nothing is brushed, or the model cannot take a value.
    """
    if not canvas or canvas["background"] is None:
        raise ValueError("the canvas is empty: take an image of the samples, or open a file")
    condition, seed, steps, n = _controls(*shared[:5])
    image = read_canvas(canvas[EDITS[edit].reads], run.generator.shape)
    settings = Settings(brushed(canvas["layers"], run.generator.shape[-1]), int(points), int(patch), float(sigma))
    done = edited(run, edit, image, settings, condition, seed, steps, n)
    return (
        html.line(f"{1000 * done.seconds:.0f} ms")
        + html.row(run.pictures(torch.stack([image, done.start])), ["image", "given"])
        + html.line("Results, each with its own noise")
        + html.row(run.pictures(done.images), run.class_names(condition, n))
    )


def read_canvas(image: Image.Image, shape: Sequence[int]) -> Tensor:
    """The centre of the canvas at the size of the model, (C, H, W) in [-1, 1]; transparent pixels are white."""
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image.convert("RGBA")).convert("L" if shape[0] == 1 else "RGB")
    pixels = np.array(ImageOps.fit(flat, (shape[2], shape[1]), Image.Resampling.BOX)).reshape(shape[1], shape[2], -1)
    return to_float(torch.from_numpy(pixels).permute(2, 0, 1))


def brushed(layers: Sequence[Image.Image], size: int) -> Tensor:
    """The pixels of the model of which at least a quarter is brushed, bool (H, W)."""
    covered = torch.zeros(size, size, dtype=torch.bool)
    for layer in layers:
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha else 0)
        covered |= torch.from_numpy(np.array(ImageOps.fit(painted, (size, size), Image.Resampling.BOX))) >= 64
    return covered


def interpolation(run: Run, a: int, b: int, *shared: Any) -> str:
    """Images of the noise between those of two images.

    Raises:
        ValueError: both images are the same.
    """
    condition, seed, steps, n = _controls(*shared[:5])
    images, seconds = interpolated(run, condition, seed, steps, (int(a or 0), int(b or 0)), max(2, n))
    return html.line(f"{1000 * seconds:.0f} ms") + html.row(run.pictures(images))
