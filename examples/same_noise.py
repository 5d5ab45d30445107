"""Draw samples of several runs from the same noise, in 1, 2 and 4 steps: the picture of the README.

    python examples/same_noise.py runs/teacher_digits/DATE_TIME runs/ict_digits/DATE_TIME
    python examples/same_noise.py "diffusion=FOLDER" "consistency training=FOLDER" --steps 1 2 --columns 8 --out two.png

A run is a folder, a checkpoint or an official file, with a caption before `=` if the name of its method is not enough.
Column k of each block shows the same noise and the same class in all rows. The block of a step count stays empty for a
run that has no sampler of this count, such as a multistep model of other segments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from torchvision.utils import make_grid

import consistency_models

EQUATION = (
    r"$x_t = x + t\,n \qquad \mathrm{loss} = w(s, t)\; d\,(f_\theta(x_t, t),\ \mathrm{target}) "
    r"\qquad f_\theta(t_{\max}\,n,\ t_{\max}) \rightarrow$ an image in one network call"
)

IMAGE, GAP, LEFT, TOP = 0.34, 0.2, 1.2, 0.65  # inches: an image, between blocks, captions, equation and titles


def main(arguments: list[str] | None = None) -> Figure:
    """Sample, write the picture, and return the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="FOLDER, FILE, CAPTION=FOLDER or CAPTION=FILE")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="step counts, one block each")
    parser.add_argument("--columns", type=int, default=7, help="images of a row of a block")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--out", default="same_noise.png")
    args = parser.parse_args(arguments)

    rows, blocks = len(args.runs), len(args.steps)
    size = (LEFT + (IMAGE * args.columns + GAP) * blocks, TOP + (IMAGE + 0.02) * rows)
    figure = Figure(figsize=size, dpi=160)
    margins = {"left": LEFT / size[0], "right": 1 - GAP / size[0], "top": 1 - TOP / size[1], "bottom": 0.01}
    spaces = {"wspace": GAP / IMAGE / args.columns, "hspace": 0.02 / IMAGE}
    figure.text(0.5, 1 - 0.2 / size[1], EQUATION, fontsize=11, ha="center", va="center")
    axes = figure.subplots(rows, blocks, squeeze=False, gridspec_kw=margins | spaces)
    for row, run in zip(axes, args.runs):
        caption, _, path = run.rpartition("=")
        model = consistency_models.load(path)
        caption = caption or model.config.get("model", {}).get("name", Path(path).stem)
        row[0].set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=9)
        for axis, steps in zip(row, args.steps):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            try:
                calls = model.make_sampler(steps=steps).nfe
            except ValueError as error:  # a model of S segments is sampled in S steps
                print(f"{caption}: no images in {steps} steps: {error}")
                continue
            images = model.sample(args.columns, steps=steps, seed=args.seed)
            grid = make_grid(images, args.columns, 1, normalize=True, value_range=(-1, 1), pad_value=1.0)
            axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
            if calls != steps:
                axis.text(1.01, 0.5, f"{calls} calls", fontsize=5, rotation=90, va="center", transform=axis.transAxes)
    for axis, steps in zip(axes[0], args.steps):
        axis.set_title(f"{steps} step{'s' * (steps > 1)}", fontsize=10)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    return figure


if __name__ == "__main__":
    main()
