"""Export of a one-step generator as an ONNX graph from noise to images, for any batch size."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consistency_models.errors import import_extra
from consistency_models.export.weights import description
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import HEADER

__all__ = ["OneStep", "to_onnx"]

LARGEST = 1_900_000_000  # bytes of weights in the file itself: protobuf allows 2 GiB


class OneStep(nn.Module):
    """clamp(f(σ_max·noise, σ_max), -1, 1), as in `Generator.sample(steps=1)`.

    Args:
        generator: its sampler makes an image in one step and draws no further noise.

    Raises:
        ValueError: the sampler has no single step (a multistep model of more than one segment).
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.model, self.sampler = generator.model, generator.make_sampler(steps=1)
        self.num_classes, self.clamp = generator.num_classes, generator.clamp

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images, shape of `noise`, which is standard normal, (B, C, H, W).

        Args:
            noise: as above.
            labels: classes (B,), int64, of a class-conditional model; -1 is no class, for a model that was trained with
                label dropout.
        """
        onehot = None
        if labels is not None:
            onehot = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(noise.dtype)
        x = self.sampler(partial(self.model, labels=onehot), noise, _no_noise)
        return x.clamp(-1, 1) if self.clamp else x


def _no_noise() -> Tensor:
    raise ValueError("an ONNX graph takes its noise once; this sampler draws further noise (churn)")


def to_onnx(generator: Generator, path: Path | str) -> None:
    """Write `path`: inputs `noise` (batch, C, H, W) and, of a class-conditional model, `labels` (batch,), as `OneStep`.

    The output is `images`, (batch, C, H, W), in [-1, 1] for image data. Weights of more than 1.9 GB go into a second
    file beside it, with the ending `.data`.

    Raises:
        ValueError: the sampler has no single step, or draws noise in it, or the network takes text.
        ModuleNotFoundError: the extra `export` is not installed.
        OSError: it cannot be written.
    """
    if getattr(generator.model.network, "takes_text", False):
        raise ValueError("an ONNX graph takes classes, and this network takes text: choose --format diffusers")
    for module in ("onnx", "onnxscript"):
        import_extra(module)
    device = next(generator.model.parameters()).device
    inputs = {"noise": torch.randn(2, *generator.shape, device=device)}
    if generator.num_classes:
        inputs["labels"] = torch.zeros(2, dtype=torch.long, device=device)
    sizes = {name: {0: torch.export.Dim("batch")} for name in inputs}
    # strict: otherwise len(x) becomes the 2 of this example instead of the batch size.
    graph = torch.export.export(OneStep(generator).eval(), (), inputs, dynamic_shapes=sizes, strict=True)
    named = {name: {0: "batch"} if name == "noise" else {} for name in inputs}  # the axis that all inputs share
    names: dict[str, Any] = {"input_names": list(inputs), "output_names": ["images"], "dynamic_shapes": named}
    program = torch.onnx.export(graph, **names, dynamo=True, verbose=False)
    assert program is not None  # with dynamo
    program.model.metadata_props[HEADER] = json.dumps(description(generator))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    weights = sum(value.nbytes for value in generator.model.state_dict().values())
    program.save(path, external_data=weights > LARGEST)
