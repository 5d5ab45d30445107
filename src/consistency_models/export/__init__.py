"""Export of a trained model to other formats: safetensors, ONNX, a folder for the Hugging Face Hub, diffusers.

    python -m consistency_models.export RUN OUT --format safetensors|onnx|hub|diffusers|checkpoint

Each function takes the generator that `consistency_models.load` returns, and the path to write.
"""

from __future__ import annotations

from consistency_models.export.diffusers import to_diffusers
from consistency_models.export.hub import to_hub
from consistency_models.export.onnx import to_onnx
from consistency_models.export.weights import to_checkpoint, to_safetensors

__all__ = ["to_checkpoint", "to_diffusers", "to_hub", "to_onnx", "to_safetensors"]
