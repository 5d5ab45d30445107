"""A trained model in the forms of other tools: safetensors, ONNX, a folder for the Hugging Face Hub, diffusers.

    python -m consistency_models.export RUN OUT --format safetensors|onnx|hub|diffusers|checkpoint

Each function takes what `consistency_models.load` gives, and where to write.
"""

from __future__ import annotations

from consistency_models.export.diffusers import to_diffusers
from consistency_models.export.hub import to_hub
from consistency_models.export.onnx import to_onnx
from consistency_models.export.weights import to_checkpoint, to_safetensors

__all__ = ["to_checkpoint", "to_diffusers", "to_hub", "to_onnx", "to_safetensors"]
