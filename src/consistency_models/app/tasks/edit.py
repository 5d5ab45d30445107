"""Zero-shot editing: `task=inpaint | colorize | superres | stroke | denoise | interpolate`.

Each task writes `evaluation/edits/TASK.png`, with the input, the preserved measurement and the result in rows, and each
result as a PNG in `evaluation/edits/TASK/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Len, MinLen
from rich.progress import Progress
from torch import Tensor

from consistency_models.app.tasks.archives import save_png
from consistency_models.app.tasks.evaluate import eval_defaults
from consistency_models.app.tasks.pictures import Pictures, class_labels, known_pixels, load_pictures, refuse_points
from consistency_models.app.tasks.sample_workers import results_folder, samplers_of
from consistency_models.errors import ConfigError, show
from consistency_models.evaluation.features import to_bytes
from consistency_models.evaluation.grids import save_comparison, save_grid
from consistency_models.sampling.batches import ImageNoise
from consistency_models.sampling.editing import (
    Colorization,
    Inpainting,
    SuperResolution,
    Unconstrained,
    estimate_sigma,
    slerp,
)
from consistency_models.sampling.generator import Generator
from consistency_models.sampling.samplers import Consistency
from consistency_models.values import Count, Descending, Distinct, ExistingPath, Sigma, Size, Text, checked

__all__ = ["colorize", "denoise", "inpaint", "interpolate", "stroke", "superres"]

Config = dict[str, Any]
Levels = Annotated[int, Ge(2)] | Descending
Ends = Annotated[Sequence[Count], Len(2, 2), Distinct]
SHOWN = 40  # images in TASK.png
ROUNDING = 0.0025  # rounding to 8 bits adds noise of 2/255/√12 = 0.00226
UNUSED = ("sigmas", "seeds", "repeats", "compile", "devices")
"""Keys of conf/eval.yaml that editing does not use."""


@checked
def inpaint(
    config: Config,
    generator: Generator,
    image: ExistingPath | None,
    mask: ExistingPath | None,
    label: Count | Text | None,
    levels: Levels,
) -> None:
    """Preserve the black pixels of a mask, and paint the white pixels anew."""
    given = load_pictures(config, generator, image, label)
    operator = Inpainting(known_pixels(mask, given, generator.shape))
    results = _edit(config, generator, given, operator, levels)
    _write(config, given.names, {"input": given.images, "kept": operator.measure(given.images), "result": results})


@checked
def colorize(
    config: Config, generator: Generator, image: ExistingPath | None, label: Count | Text | None, levels: Levels
) -> None:
    """Preserve the brightness of grey images, and add colours."""
    given, operator = load_pictures(config, generator, image, label), Colorization()
    results = _edit(config, generator, given, operator, levels)
    _write(config, given.names, {"input": given.images, "kept": operator.grey(given.images), "result": results})


@checked
def superres(
    config: Config,
    generator: Generator,
    image: ExistingPath | None,
    label: Count | Text | None,
    patch: Size,
    levels: Levels,
) -> None:
    """Preserve the mean of each patch, and add detail."""
    given, operator = load_pictures(config, generator, image, label), SuperResolution(patch)
    results = _edit(config, generator, given, operator, levels)
    _write(config, given.names, {"input": given.images, "kept": operator.measure(given.images), "result": results})


@checked
def stroke(
    config: Config,
    generator: Generator,
    image: ExistingPath | None,
    label: Count | Text | None,
    patch: Size,
    levels: Levels,
) -> None:
    """Add noise to a painting and denoise it to an image; images of the data set are coarsened first."""
    given = load_pictures(config, generator, image, label)
    rows = {"painting": given.images}
    if image is None:
        painted = Pictures(_measured(config, SuperResolution(patch), given.images), given.labels, given.names, [])
        rows, given = {"input": given.images, "painting": painted.images}, painted
    _write(config, given.names, rows | {"result": _edit(config, generator, given, Unconstrained(), levels)})


@checked
def denoise(
    config: Config,
    generator: Generator,
    image: ExistingPath | None,
    label: Count | Text | None,
    noise: Sigma,
    sigma: Sigma | None,
) -> None:
    """Denoise in one call at the level of the noise; noise is added to images of the data set first."""
    given = load_pictures(config, generator, image, label)
    n, x, rows = len(given.images), given.images, {"noisy": given.images}
    levels = [sigma or max(estimate_sigma(each), ROUNDING) for each in x]
    if image is None:
        x = x + noise * ImageNoise(config["seed"], list(range(n)), generator.shape, "cpu")()
        rows, levels = {"input": given.images, "noisy": x}, [sigma or noise] * n
    results = torch.empty_like(x)
    for level in dict.fromkeys(levels):
        same = torch.tensor([each == level for each in levels])
        labels = None if given.labels is None else given.labels[same]
        these = Pictures(x[same], labels, [], [])
        results[same] = _edit(config, generator, these, Unconstrained(), [level], x[same])
    if image is not None:
        print("\n".join(f"{name}: noise of sigma {level:.3g}" for name, level in zip(given.names, levels)))
    _write(config, given.names, rows | {"result": results})


@checked
def interpolate(
    config: Config, generator: Generator, ends: Annotated[Sequence[Ends], MinLen(1)], label: Count | Text | None
) -> None:
    """Generate rows of images from the noise of one sample to the noise of another."""
    refuse_points(config, generator)
    columns, rows, names = config["n"] or 10, [], []
    sigma = _sampler(config, generator).sigmas[0]
    for first, last in ends:
        a, b = ImageNoise(config["seed"], [first, last], generator.shape, "cpu")()
        x = sigma * torch.stack([slerp(a, b, k / (columns - 1)) for k in range(columns)])
        own = generator.labels(torch.full((columns,), first))
        given = Pictures(x, class_labels(generator, columns, label, own), [], [])
        rows.append(_edit(config, generator, given, Unconstrained(), [sigma], x))
        names += [f"{first}_{last}_{k:02d}" for k in range(columns)]
    captions = [f"noise {first} to {last}" for first, last in ends]
    _write(config, names, {"result": torch.cat(rows)}, columns=columns, captions=captions)


def _edit(
    config: Config, generator: Generator, given: Pictures, operator: Any, levels: Levels, x: Tensor | None = None
) -> Tensor:
    """Check the settings, then generate images whose measurements by the operator equal those of the given images."""
    _measured(config, operator, given.images)
    sampler = _sampler(config, generator)
    if not isinstance(levels, int) and levels[-1] <= getattr(sampler, "sigma_min", 0.0):
        key, value = ("task.sigma", levels[-1]) if "sigma" in config["task"] else ("task.levels", list(levels))
        raise ConfigError(key, value, f"levels above {sampler.sigma_min}", reason="the model ends at this level")
    if generator.lowest and (isinstance(levels, int) or levels[-1] < generator.lowest):
        allowed = f"a list of levels from {generator.lowest:g} up"
        raise ConfigError(
            "task.levels", levels, allowed, reason="the model was not trained at other levels (model=tcm)"
        )
    settings = {"seed": config["seed"], "labels": given.labels, "batch_size": config["batch_size"], "x": x}
    calls = levels - 1 if isinstance(levels, int) else len(levels)
    steps = (config["steps"] or [None])[0]
    with Progress() as bar:
        row = bar.add_task("editing", total=len(given.images) * calls)
        return generator.edit(
            given.images, operator, levels, steps=steps, progress=lambda done: bar.advance(row, done), **settings
        )


def _measured(config: Config, operator: Any, images: Tensor) -> Tensor:
    try:
        return operator.measure(images)
    except ValueError as error:
        key = "task.patch" if "patch" in config["task"] else "task"
        value = config["task"].get("patch", _name(config))
        raise ConfigError(key, value, "a value that fits the images", reason=str(error)) from error


def _sampler(config: Config, generator: Generator) -> Any:
    """Return the sampler that solves the ODE from any level, for the given step count or the first one of the run."""
    defaults = eval_defaults()
    for key in UNUSED:
        if config[key] != defaults[key]:
            raise ConfigError(key, config[key], show(defaults[key]), reason=f"task={_name(config)} does not use it")
    sampler, steps = samplers_of(config, generator)[0], config["steps"]
    if steps and (len(steps) > 1 or isinstance(sampler, Consistency)):
        allowed = "one number for a model that takes several steps from each level, null for a consistency model"
        raise ConfigError("steps", steps, allowed, "the levels themselves are task.levels")
    return sampler


def _write(
    config: Config,
    names: list[str],
    rows: dict[str, Tensor],
    columns: int = 10,
    captions: list[str] | None = None,
) -> None:
    """Write the picture of all images, and each result to its own file; files of earlier results are removed."""
    name, folder = _name(config), results_folder(config["run"]) / "edits"
    if captions is None:
        shown = {caption: images[:SHOWN] for caption, images in rows.items()}
        save_comparison(folder / f"{name}.png", shown, columns, name)
    else:
        save_grid(folder / f"{name}.png", rows["result"], columns, name, captions)
    (folder / name).mkdir(parents=True, exist_ok=True)
    for earlier in (folder / name).glob("*.png"):
        earlier.unlink()
    for each, pixels in zip(names, to_bytes(rows["result"]).permute(0, 2, 3, 1).numpy()):
        save_png(folder / name / f"{each}.png", pixels)
    print(f"written to {folder / name}.png, and as single files to {folder / name}")


def _name(config: Config) -> str:
    return config["task"]["_target_"].rpartition(".")[2]
