"""Text to image: prompts of texts, and images of latents, by the encoders in a folder of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from consistency_models.conditions import Prompt
from consistency_models.data.encoders import Encoders

__all__ = ["TextToImage"]

TEXTS = 8  # in one call of the text encoders


class TextToImage:
    """The text encoders and the VAE that belong to a model of latents.

    Args:
        folder: a StableDiffusionPipeline or StableDiffusionXLPipeline with safetensors files.
        device: device of the encoders.
        scale, shift: of the latents that the model was trained on, x = scale·(latent - shift); numbers, or one number a
            channel. None: those of the VAE.

    Raises:
        DataError: see `Encoders`.
        ModuleNotFoundError: the extra `latent` is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        scale: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
    ) -> None:
        self.encoders = Encoders(folder, device)
        scale = self.encoders.scale if scale is None else scale
        shift = self.encoders.shift if shift is None else shift
        self.scale, self.shift = (torch.tensor(value).reshape(-1, 1, 1) for value in (scale, shift))

    def prompts(self, texts: Sequence[str], size: int, guidance: float | None = None) -> Prompt:
        """Encode texts; equal texts once.

        Args:
            texts: n texts.
            size: height and width of a latent; Stable Diffusion XL takes the size of the image as a condition.
            guidance: g of uncond + g·(cond - uncond), for a model with w = g - 1 as an input; None: no such input.
        """
        distinct, n = list(dict.fromkeys(texts)), len(texts)
        parts = [self.encoders.texts(distinct[k : k + TEXTS]) for k in range(0, len(distinct), TEXTS)]
        rows = torch.tensor([distinct.index(text) for text in texts])
        encoded = {name: torch.cat([part[name] for part in parts])[rows] for name in parts[0]}
        empty, pixels = self.encoders.empty(), float(size * self.encoders.factor)
        return Prompt(
            **encoded,
            sizes=torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * n) if "pooled" in encoded else None,
            guidance=None if guidance is None else torch.full((n,), guidance - 1.0),
            empty=empty["text"],
            empty_pooled=empty.get("pooled"),
        )

    def images(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) of the model: images (B, 3, H, W) in [-1, 1], on the CPU."""
        return self.encoders.decoded(latents / self.scale + self.shift).clamp(-1, 1)
