"""The widgets of the live page, and the functions that turn their values into HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from consistency_models.app.demo import html
from consistency_models.app.demo.answers import EDITS, Settings, edited, interpolated, sampled
from consistency_models.app.demo.runs import MAX_STEPS, Run
from consistency_models.evaluation.features import to_float

__all__ = ["page"]

CANVAS = 384  # pixels of the canvas, about
SHADE = "rgba(255, 90, 60, 0.75)"
IN_TURN = -1
"""Value of the class menu: the classes take turns."""
ONCE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIVE = {**ONCE, "trigger_mode": "always_last"}


def page(runs: Sequence[Run]) -> gr.Blocks:
    """Build the page of runs side by side."""
    first, most = runs[0], min(run.most for run in runs)
    with gr.Blocks(title="consistency-models", analytics_enabled=False) as blocks:
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                condition = _condition(first)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
                again = gr.Button("Another seed", elem_id="again")
                steps = gr.Slider(1, MAX_STEPS, first.nearest(1), step=1, label="Steps", elem_id="steps")
                n = gr.Slider(1, most, min(10, most), step=1, label="Images", elem_id="images", visible=most > 1)
                k = gr.Slider(0, most - 1, 0, step=1, label="Image to follow", elem_id="follow", visible=most > 1)
            shared = [condition, seed, steps, n, k]
            with gr.Column(scale=4), gr.Tabs():
                with gr.Tab("Samples"):
                    _samples_tab(blocks, runs, shared)
                if first.encoders is None:
                    with gr.Tab("Edit"):
                        _edit_tab(blocks, runs, shared)
                    with gr.Tab("Interpolate") as tab:
                        _interpolate_tab(tab, runs, shared)
        again.click(lambda seed: int(seed or 0) + 1, seed, seed, **ONCE)
    return blocks


def _condition(run: Run) -> gr.components.Component:
    generator = run.generator
    if run.takes_text:
        return gr.Textbox("", label="Prompt", elem_id="condition")
    names = generator.class_names or tuple(map(str, range(generator.num_classes)))
    choices = [("in turn", IN_TURN), *((name, number) for number, name in enumerate(names))]
    return gr.Dropdown(choices, value=IN_TURN, label="Class", elem_id="condition", visible=bool(generator.num_classes))


def _in_columns(runs: Sequence[Run], element: str) -> list[gr.HTML]:
    """Headings of the runs side by side, and an output below each."""
    outputs = []
    with gr.Row():
        for number, run in enumerate(runs):
            with gr.Column(min_width=320):
                gr.HTML(html.heading(run.name, _about(run)), apply_default_css=False)
                outputs.append(gr.HTML(elem_id=f"{element}-{number}", apply_default_css=False))
    return outputs


def _about(run: Run) -> str:
    config, size = run.generator.config, sum(p.numel() for p in run.generator.model.parameters())
    method, data = (config.get(group, {}).get("name") for group in ("model", "data"))
    known = (f"{method} on {data}" if method and data else "", f"{size / 1e6:.3g} M parameters")
    return ", ".join(filter(None, (*known, f"weights {run.generator.weights}")))


def _answers(function: Callable[..., str], runs: Sequence[Run], *values: Any) -> Any:
    """One HTML for each run; an error that names a value becomes a message on the page."""
    try:
        answers = [function(run, *values) for run in runs]
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return answers if len(answers) > 1 else answers[0]


def _controls(condition: Any, seed: Any, steps: Any, n: Any) -> tuple[int | str | None, int, int, int]:
    """The values of the widgets as numbers; a field that the user has emptied counts as 0."""
    return None if condition in (IN_TURN, None) else condition, int(seed or 0), int(steps), int(n)


def _samples_tab(blocks: gr.Blocks, runs: Sequence[Run], shared: list[Any]) -> None:
    outputs = _in_columns(runs, "samples")
    answers = partial(_answers, samples_html, runs)
    gr.on([blocks.load, *(each.change for each in shared)], answers, shared, outputs, **LIVE)


def samples_html(run: Run, condition: Any, seed: int, steps: int, n: int, k: int) -> str:
    """Samples, and the calls of the network from noise to image k."""
    condition, seed, steps, n = _controls(condition, seed, steps, n)
    samples, k = sampled(run, condition, seed, steps, n), min(int(k), n - 1)
    labels = run.labels(condition, n) if run.generator.num_classes else None
    rows = {
        "input": run.pictures(torch.stack([call.scaled[k] for call in samples.calls])),
        "output": run.pictures(torch.stack([call.denoised[k] for call in samples.calls])),
    }
    calls = f"{_count(samples.steps, 'step')}, {_count(len(samples.calls), 'network call')} an image"
    return (
        html.line(f"{calls}, {1000 * samples.seconds:.0f} ms")
        + html.row(run.pictures(samples.images), run.generator.names(labels) or ())
        + html.line(f"From noise to image {k}: the input of the network, and its output, at each level σ")
        + html.table([f"σ {call.sigma:.3g}" for call in samples.calls], rows)
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _edit_tab(blocks: gr.Blocks, runs: Sequence[Run], shared: list[Any]) -> None:
    channels, size, _ = runs[0].generator.shape
    edits = [name for name, edit in EDITS.items() if channels in edit.channels]
    patches = [patch for patch in (2, 4, 8, 16) if size % patch == 0]
    scale = max(1, CANVAS // size)
    colours = [SHADE, "#000000", "#808080", "#ffffff"]
    with gr.Row():
        with gr.Column(min_width=420):
            canvas = gr.ImageEditor(
                type="pil",
                sources=("upload", "clipboard"),
                transforms=(),
                layers=False,
                format="png",
                canvas_size=(size * scale, size * scale),
                height=520,
                brush=gr.Brush(default_size=scale, colors=colours, default_color=SHADE),
                label="Brush over the part to repaint, or paint",
                elem_id="canvas",
            )
            take = gr.Button("Take the followed image of the samples", elem_id="take")
        with gr.Column(min_width=260):
            edit = gr.Radio(edits, value=edits[0], label="Edit", elem_id="edit")
            settings = {
                "points": gr.Slider(2, 40, 40, step=1, label="Levels (the paper takes 40)", elem_id="points"),
                "patch": gr.Dropdown(patches, value=(patches or [1])[0], label="Side of a patch", visible=False),
                "sigma": gr.Slider(0.05, 5, 0.5, label="Level σ of the noise", visible=False),
            }
            go = gr.Button("Edit", variant="primary", elem_id="go")
    outputs = _in_columns(runs, "edits")
    used = partial(_used_settings, settings)
    edit.change(used, edit, list(settings.values()), **ONCE)
    gr.on([blocks.load, take.click], partial(_taken, runs[0], scale), shared, canvas, **ONCE)
    go.click(partial(_answers, edits_html, runs), [canvas, edit, *settings.values(), *shared], outputs, **ONCE)


def _used_settings(settings: dict[str, Any], edit: str) -> list[Any]:
    return [gr.update(visible=name in EDITS[edit].settings) for name in settings]


def _taken(run: Run, scale: int, condition: Any, seed: int, steps: int, n: int, k: int) -> dict[str, Any]:
    """Image k of the samples, enlarged, as the background of the canvas."""
    condition, seed, steps, n = _controls(condition, seed, steps, n)
    image = sampled(run, condition, seed, steps, n).images[min(int(k), n - 1)]
    pixels = run.pictures(image[None])[0].expand(3, -1, -1).permute(1, 2, 0).numpy()
    return {"background": Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)), "layers": [], "composite": None}


def edits_html(
    run: Run, canvas: dict[str, Any] | None, edit: str, points: int, patch: int, sigma: float, *shared: Any
) -> str:
    """What the model is given, and its results with different noise.

    Raises:
        ValueError: the canvas is empty, nothing is brushed, or the model cannot take a value.
    """
    if not canvas or canvas["background"] is None:
        raise ValueError("the canvas is empty: take an image of the samples, or open a file")
    condition, seed, steps, n = _controls(*shared[:4])
    image = read_canvas(canvas[EDITS[edit].reads], run.generator.shape)
    settings = Settings(brushed(canvas["layers"], run.generator.shape[-1]), int(points), int(patch), float(sigma))
    done = edited(run, edit, image, settings, condition, seed, steps, n)
    return (
        html.line(f"{1000 * done.seconds:.0f} ms")
        + html.row(run.pictures(torch.stack([image, done.start])), ["image", "given"])
        + html.line("Results, each with its own noise")
        + html.row(run.pictures(done.images))
    )


def read_canvas(image: Image.Image, shape: Sequence[int]) -> Tensor:
    """The image of the canvas at the size of the model, (C, H, W) in [-1, 1]; transparent pixels are white."""
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image.convert("RGBA")).convert("L" if shape[0] == 1 else "RGB")
    pixels = np.array(flat.resize((shape[2], shape[1]), Image.Resampling.BOX)).reshape(shape[1], shape[2], -1)
    return to_float(torch.from_numpy(pixels).permute(2, 0, 1))


def brushed(layers: Sequence[Image.Image], size: int) -> Tensor:
    """The pixels of the model of which at least a quarter is brushed, bool (H, W)."""
    covered = torch.zeros(size, size, dtype=torch.bool)
    for layer in layers:
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha else 0)
        covered |= torch.from_numpy(np.array(painted.resize((size, size), Image.Resampling.BOX))) >= 64
    return covered


def _interpolate_tab(tab: gr.Tab, runs: Sequence[Run], shared: list[Any]) -> None:
    with gr.Row():
        a = gr.Number(0, label="From the noise of image", precision=0, minimum=0)
        b = gr.Number(1, label="To the noise of image", precision=0, minimum=0)
    outputs = _in_columns(runs, "interpolation")
    answers, inputs = partial(_answers, interpolation_html, runs), [a, b, *shared]
    gr.on([tab.select, *(each.change for each in inputs)], answers, inputs, outputs, **LIVE)


def interpolation_html(run: Run, a: int, b: int, *shared: Any) -> str:
    """Images of the noise between those of two images.

    Raises:
        ValueError: both images are the same.
    """
    condition, seed, steps, n = _controls(*shared[:4])
    images, seconds = interpolated(run, condition, seed, steps, (int(a or 0), int(b or 0)), max(2, n))
    return html.line(f"{1000 * seconds:.0f} ms") + html.row(run.pictures(images))
