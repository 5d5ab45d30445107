"""`task=sample`: write many images in layouts that trainings and metrics of other projects read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from consistency_models.app.tasks.archives import ARCHIVES, PNGWriter
from consistency_models.app.tasks.pictures import class_number
from consistency_models.app.tasks.sample_workers import Producer, index_sets, progress_bar, results_folder, samplers_of
from consistency_models.errors import ConfigError, NonFiniteError
from consistency_models.evaluation.features import to_bytes
from consistency_models.files import write_atomically
from consistency_models.sampling.generator import Generator
from consistency_models.values import Count, Distinct, Text, checked

__all__ = ["run"]


@checked
def run(
    config: dict[str, Any],
    generator: Generator,
    out: Text | None,
    format: Literal["png", "zip", "npz"],
    classes: Annotated[Sequence[Count | Text], MinLen(1), Distinct] | None,
    by_class: bool,
) -> None:
    """Write images in EDM's or OpenAI's layout; see conf/task/sample.yaml.

    The images are PNGs below OUT. For an archive, they are below OUT.part until the archive is complete. Existing files
    are not generated again. All files are written atomically.

    Raises:
        ConfigError: the model has no such images or classes, or OUT has other content.
        NonFiniteError: an image is not finite.
    """
    sampler, wanted = samplers_of(config, generator)[0], index_sets(config, 64)[0]
    choice = _choice(generator, classes, by_class)
    target = Path(out).expanduser() if out else results_folder(config["run"]) / f"samples_{len(sampler.sigmas)}step"
    target = target if format == "png" or target.suffix else target.with_name(f"{target.name}.{format}")
    if format != "png" and target.exists():
        fix = "delete it, or choose another name"
        raise ConfigError("task.out", target, "an archive that does not exist", fix, reason="it exists")
    folder = target if format == "png" else target.with_name(f"{target.name}.part")
    _claim(folder, _settings(config, generator, sampler, classes and choice, by_class))
    labels = {k: choice[k % len(choice)] if choice else None for k in wanted}
    names = {k: f"{labels[k] if by_class else k // 1000:05d}/img{k:08d}.png" for k in wanted}
    existing = {k for k in wanted if (folder / names[k]).exists()}
    with Producer(config, generator, sampler.nfe * len(wanted)) as producer, progress_bar() as progress:
        task = progress.add_task("samples", total=len(wanted) - len(existing))
        with PNGWriter(lambda: progress.advance(task)) as writer:
            for indices, images in producer.batches(sampler, wanted, choice, existing):
                if not images.isfinite().all():
                    raise NonFiniteError(f"images {indices.start} to {indices.stop - 1} are not finite")
                pixels = zip(indices, to_bytes(images).permute(0, 2, 3, 1).numpy())
                writer.write([(folder / names[k], each) for k, each in pixels if k not in existing])
    if format == "png":
        _describe(folder, choice)
    else:
        order = sorted(wanted, key=lambda k: (labels[k], k)) if by_class else wanted
        ARCHIVES[format](target, folder, [names[k] for k in order], [labels[k] for k in order] if choice else None)
        shutil.rmtree(folder)
    print(f"{len(wanted)} images, {len(existing)} of them existed before, in {target}")


def _choice(generator: Generator, classes: list[int | str] | None, by_class: bool) -> list[int] | None:
    """Return the classes of consecutive images, in turns; None for an unconditional model."""
    if not generator.clamp or generator.shape[0] not in (1, 3):
        raise ConfigError(
            "task", "sample", "a model of images", reason=f"this one makes {generator.shape} of any values"
        )
    count = generator.num_classes
    if not count and (classes or by_class):
        key, value = ("task.classes", classes) if classes else ("task.by_class", "true")
        raise ConfigError(key, value, "left out", reason="the model is unconditional")
    if classes:
        return [class_number(generator, "task.classes", each) for each in classes]
    return list(range(count)) or None


def _settings(config: dict[str, Any], generator: Generator, sampler: Any, classes: Any, by_class: bool) -> dict:
    """Return all settings that the image of an index and its path depend on."""
    model = {"digest": generator.origin["digest"], "weights": generator.weights}
    model["autocast"] = str(generator.model.autocast)
    sampling = {"sampler": type(sampler).__name__, **{key: str(value) for key, value in vars(sampler).items()}}
    return {**model, **sampling, "seed": config["seed"], "classes": classes, "by_class": by_class}


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Create the folder for these settings.

    Raises:
        ConfigError: the folder has images of other settings.
    """
    file = folder / "samples.json"
    if folder.exists() and any(folder.iterdir()):
        known = json.loads(file.read_text()) if file.exists() else {}
        differing = [key for key in settings if known.get(key, "None") != settings[key]]  # options came later
        if differing:
            allowed, fix = "a new folder, or one of the same settings", "choose another folder by task.out="
            raise ConfigError("task.out", folder, allowed, fix, reason=f"different here: {', '.join(differing)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(settings, indent=2) + "\n")


def _describe(folder: Path, choice: list[int] | None) -> None:
    """Write dataset.json of all images in the folder, also from earlier commands."""
    paths = sorted(folder.glob("*/img*.png"), key=lambda path: path.stem)
    pairs = [[f"{path.parent.name}/{path.name}", int(path.stem[3:])] for path in paths]
    content = {"labels": [[name, choice[k % len(choice)]] for name, k in pairs] if choice else None}
    write_atomically(folder / "dataset.json", json.dumps(content) + "\n")
