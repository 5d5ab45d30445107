"""A folder for the Hugging Face Hub: weights, configuration, samples, and a model card with the measured metrics.

    README.md  model.safetensors  config.json  samples.png

`consistency_models.load(FOLDER)` reads it; `hf upload NAME FOLDER` publishes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from consistency_models.data_spec import listed
from consistency_models.errors import import_extra
from consistency_models.evaluation.grids import save_comparison, save_scatter
from consistency_models.export.weights import description, to_safetensors
from consistency_models.files import read_json, write_atomically
from consistency_models.sampling.generator import Generator
from consistency_models.text import markdown

__all__ = ["measured", "to_hub"]

LICENSES = {"OpenAI": "mit"} | dict.fromkeys(
    ("EDMPrecond", "ECMPrecond", "Precond", "VPPrecond", "VEPrecond", "iDDPMPrecond"), "cc-by-nc-sa-4.0"
)
"""Licences of the official weights, by the kind of file."""

IMAGES = 20
TASK = "unconditional-image-generation"  # the nearest task of the Hub, which has no task from classes

CARD = """---
{front}
---

# {name}

{what}

![Samples](samples.png)

Each group of rows shows the same noise: {steps}.

## Use

Install the project in a copy of its repository: `pip install ".[export]"`. The package of its name on PyPI is another
project.

```python
import consistency_models

generator = consistency_models.load({folder})  # this folder
images = generator.sample(16, steps={first}, seed=0)  # (16, {shape}){range}
```

## Measured

{table}

`config.json` says how it was made; the weights are "{weights}" of the checkpoint with SHA-256 {digest}.
"""


def to_hub(generator: Generator, folder: Path | str, license: str | None = None) -> None:
    """Write the folder; it is created if it does not exist.

    Args:
        generator: result of `consistency_models.load`. The card quotes the run's `evaluation.json` if it is of these
            weights.
        folder: folder to write.
        license: of the weights, as the Hub spells it (mit, cc-by-nc-sa-4.0 …); by default that of an official file,
            and "other" for all other weights, whose licence only the owner knows.

    Raises:
        ModuleNotFoundError: the extras `export` and `hub` are not installed.
        OSError: it cannot be written.
        ValueError: the run's `evaluation.json` is damaged.
    """
    hub = import_extra("huggingface_hub", "export,hub")
    folder, said = Path(folder), description(generator)
    to_safetensors(generator, folder / "model.safetensors")
    write_atomically(folder / "config.json", json.dumps(said, indent=2) + "\n")
    pictures = {f"{n}-step": generator.sample(IMAGES, steps=n) for n in generator.steps}
    if generator.clamp:
        names = generator.names(generator.labels(torch.arange(IMAGES)))
        save_comparison(folder / "samples.png", pictures, names=names)
    else:
        save_scatter(folder / "samples.png", pictures)

    name, config = folder.resolve().name, said["config"]
    method, data = config.get("model", {}).get("name", generator.origin.get("kind")), config["data"].get("name")
    evaluation = measured(generator)
    results = [
        hub.EvalResult(
            task_type=TASK,
            dataset_type=data or "unknown",
            dataset_name=data or "unknown",
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in evaluation.items()
    ]
    front = hub.ModelCardData(
        license=license or LICENSES.get(generator.origin.get("kind", ""), "other"),
        library_name="consistency-models",
        tags=[tag for tag in ("consistency-models", "image-generation", method, data) if tag],
        pipeline_tag=TASK,
        model_name=name,
        eval_results=results or None,
    )
    lines = [f"| {markdown(metric)} | {value:.4g} |" for metric, value in evaluation.items()]
    table = "\n".join(["| metric | value |", "|---|---|", *lines])
    card = CARD.format(
        front=front.to_yaml().strip(),
        name=markdown(name),
        folder=json.dumps(name),
        what=_what(generator, method, data),
        steps=", ".join(pictures),
        first=generator.steps[0],
        shape=", ".join(map(str, generator.shape)),
        range=" in [-1, 1]" if generator.clamp else "",
        table=table if evaluation else "Nothing yet: `python eval.py run=RUN` before the export.",
        weights=markdown(generator.weights),
        digest=markdown(generator.origin["digest"]),
    )
    write_atomically(folder / "README.md", card)


def measured(generator: Generator) -> dict[str, float]:
    """{metric's full name: value} of the `evaluation.json` that eval.py wrote of this checkpoint and these weights."""
    path = Path(generator.origin["path"])
    for folder in (path.parent.parent, path.parent / path.stem):  # of a run's checkpoint; of one that lies elsewhere
        file = folder / "evaluation" / "evaluation.json"
        if not file.is_file():
            continue
        try:
            content: dict[str, Any] = read_json(file, folder)
            if (content["digest"], content["weights"]) == (generator.origin["digest"], generator.weights):
                results = {str(result["metric"]): result["value"] for result in content["results"]}
                return {metric: float(value) for metric, value in results.items() if value is not None}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: expected the evaluation.json of eval.py; found {error!r}") from error
    return {}


def _what(generator: Generator, method: str | None, data: str | None) -> str:
    shape = "x".join(map(str, reversed(generator.shape[1:])))
    classes = f"{generator.num_classes} classes" if generator.num_classes else "no classes"
    classes += f": {markdown(listed(generator.class_names))}" if generator.class_names else ""
    network = type(generator.model.network).__name__
    count = sum(parameter.numel() for parameter in generator.model.parameters()) / 1e6
    steps = " or ".join(map(str, generator.steps))
    return (
        f"A generator of {markdown(data or 'images')} ({shape}, {classes}) in {steps} steps: "
        f"method {markdown(method)}, network {network} with {count:.1f} million parameters."
    )
