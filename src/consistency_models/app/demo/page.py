"""The widgets of the live page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr

from consistency_models.app.demo import views
from consistency_models.app.demo.answers import EDITS
from consistency_models.app.demo.runs import MAX_STEPS, Run

__all__ = ["page"]

CANVAS = 384  # pixels of the canvas, about
SHADE = "rgba(255, 90, 60, 0.75)"
ONCE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIVE = {**ONCE, "trigger_mode": "always_last"}


def page(runs: Sequence[Run]) -> gr.Blocks:
    """Build the page of runs side by side."""
    first, most = runs[0], min(run.most for run in runs)
    with gr.Blocks(title="consistency-models", analytics_enabled=False) as blocks:
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                condition = _condition(first)
                guidance = gr.Slider(
                    1, 20, first.guidance, label="Guidance", elem_id="guidance", visible=first.takes_text
                )
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
                again = gr.Button("Another seed", elem_id="again")
                steps = gr.Slider(1, MAX_STEPS, first.nearest(1), step=1, label="Steps", elem_id="steps")
                n = gr.Slider(1, most, min(10, most), step=1, label="Images", elem_id="images", visible=most > 1)
                k = gr.Slider(0, most - 1, 0, step=1, label="Image to follow", elem_id="follow", visible=most > 1)
            shared = [condition, guidance, seed, steps, n, k]
            with gr.Column(scale=4), gr.Tabs():
                with gr.Tab("Samples"):
                    _samples_tab(blocks, runs, shared)
                if first.latent is None:
                    with gr.Tab("Edit"):
                        _edit_tab(blocks, runs, shared)
                    with gr.Tab("Interpolate") as tab:
                        _interpolate_tab(tab, runs, shared)
        again.click(None, seed, seed, js="seed => (seed ?? 0) + 1", **ONCE)
    return blocks


def _condition(run: Run) -> gr.components.Component:
    generator = run.generator
    if run.takes_text:
        return gr.Textbox("", label="Prompt", max_length=1000, elem_id="condition")
    names = generator.class_names or tuple(map(str, range(generator.num_classes)))
    choices = [("in turn", views.IN_TURN), *((name, number) for number, name in enumerate(names))]
    return gr.Dropdown(
        choices, value=views.IN_TURN, label="Class", elem_id="condition", visible=bool(generator.num_classes)
    )


def _in_columns(runs: Sequence[Run], element: str) -> list[gr.HTML]:
    """Headings of the runs side by side, and an output below each."""
    outputs = []
    with gr.Row():
        for number, run in enumerate(runs):
            with gr.Column(min_width=320):
                gr.HTML(views.title(run), apply_default_css=False)
                outputs.append(gr.HTML(elem_id=f"{element}-{number}", apply_default_css=False))
    return outputs


def _answers(function: Callable[..., str], runs: Sequence[Run], *values: Any) -> Any:
    """One HTML for each run; an error that names a value becomes a message on the page."""
    try:
        answers = [function(run, *values) for run in runs]
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return answers if len(answers) > 1 else answers[0]


def _samples_tab(blocks: gr.Blocks, runs: Sequence[Run], shared: list[Any]) -> None:
    outputs = _in_columns(runs, "samples")
    answers = partial(_answers, views.samples, runs)
    gr.on([blocks.load, *(each.change for each in shared)], answers, shared, outputs, **LIVE)


def _edit_tab(blocks: gr.Blocks, runs: Sequence[Run], shared: list[Any]) -> None:
    channels, size, _ = runs[0].generator.shape
    edits = [name for name, edit in EDITS.items() if channels in edit.channels]
    patches = [patch for patch in (2, 4, 8, 16) if size % patch == 0] or [1]
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
                brush=gr.Brush(default_size=max(4, scale // 2), colors=colours, default_color=SHADE),
                label="Brush over the part to repaint, or paint",
                elem_id="canvas",
            )
            take = gr.Button("Take the followed image of the samples", elem_id="take")
        with gr.Column(min_width=260):
            edit = gr.Radio(edits, value=edits[0], label="Edit", elem_id="edit")
            settings = {
                "points": gr.Slider(2, 40, 40, step=1, label="Levels (the paper takes 40)", elem_id="points"),
                "patch": gr.Dropdown(patches, value=patches[0], label="Side of a patch", visible=False),
                "sigma": gr.Slider(0.05, 5, 0.5, label="Level σ of the noise", visible=False),
            }
            go = gr.Button("Edit", variant="primary", elem_id="go")
            outputs = _in_columns(runs, "edits")
    used = partial(_used_settings, settings)
    edit.change(used, edit, list(settings.values()), **ONCE)
    gr.on([blocks.load, take.click], partial(views.background, runs[0], scale), shared, canvas, **ONCE)
    go.click(partial(_answers, views.edits, runs), [canvas, edit, *settings.values(), *shared], outputs, **ONCE)


def _used_settings(settings: dict[str, Any], edit: str) -> list[Any]:
    return [gr.update(visible=name in EDITS[edit].settings) for name in settings]


def _interpolate_tab(tab: gr.Tab, runs: Sequence[Run], shared: list[Any]) -> None:
    with gr.Row():
        a = gr.Number(0, label="From the noise of image", precision=0, minimum=0, maximum=2**31 - 1)
        b = gr.Number(1, label="To the noise of image", precision=0, minimum=0, maximum=2**31 - 1)
    outputs = _in_columns(runs, "interpolation")
    answers, inputs = partial(_answers, views.interpolation, runs), [a, b, *shared]
    gr.on([tab.select, *(each.change for each in inputs)], answers, inputs, outputs, **LIVE)
