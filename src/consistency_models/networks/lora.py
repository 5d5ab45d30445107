"""Low-rank adapters on a network whose weights are those of another network: shared, frozen, and not copied.

    W·x  ->  W·x + (α/r)·B·A·x,      A (r, in) drawn at random, B (out, r) zero at the start

Adapters are those of the library peft (extra `latent`). The base is not switched to and fro: the student's layers hold
the Parameter objects of the teacher's layers, and the teacher has no adapters. (LoRA, arXiv 2106.09685; of latent
consistency models: LCM-LoRA, arXiv 2311.05556.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import nn

from consistency_models.errors import import_extra
from consistency_models.random import seed_of
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Count, Distinct, Positive, Size, Text, checked

__all__ = ["LCM_LAYERS", "LoRA", "share_base", "shared_names"]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
LCM_LAYERS = (
    *ATTENTION,
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)
"""The layers of diffusers' scripts of LCM-LoRA."""
ADAPTER = "default"  # peft's name of a single adapter
MARK = ".lora_"  # in the names of the parameters of adapters


@loadable()
@checked
@dataclass(frozen=True)
class LoRA:
    """Adapters of a U-Net of diffusers.

    Args:
        r: rank of the adapters.
        alpha: α; the adapters are multiplied by α/r.
        dropout: of the input of the adapters, in training.
        targets: ends of the names of the layers that get adapters.
        seed: A is drawn from this seed.
    """

    r: Size = 64
    alpha: Positive = 64
    dropout: BelowOne = 0.0
    targets: Annotated[Sequence[Text], MinLen(1), Distinct] = LCM_LAYERS
    seed: Count = 0
    needs_package = "peft"

    def inject(self, unet: nn.Module) -> None:
        """Add the adapters to a U-Net; all other parameters are frozen.

        Raises:
            ValueError: no layer has such a name.
            ModuleNotFoundError: the extra `latent` is not installed.
        """
        peft = import_extra("peft", "latent")
        alpha = int(self.alpha) if float(self.alpha).is_integer() else self.alpha  # as peft's own files have it
        settings = peft.LoraConfig(
            r=self.r, lora_alpha=alpha, lora_dropout=self.dropout, target_modules=list(self.targets)
        )
        peft.inject_adapter_in_model(settings, unet, ADAPTER)
        self.draw(unet)

    def draw(self, unet: nn.Module) -> None:
        """Draw A and set B to zero, on the CPU if the adapters are on the meta device."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, "lora"))
            for layer in _adapted(unet):
                for part in (layer.lora_A, layer.lora_B):
                    if next(part.parameters()).is_meta:
                        part.to_empty(device="cpu")
                layer.reset_lora_parameters(ADAPTER, True)


def _adapted(unet: nn.Module) -> list[Any]:
    return [module for module in unet.modules() if hasattr(module, "lora_A")]


def share_base(network: Any, base: Any) -> None:
    """Replace the frozen parameters and the buffers of `network` by those of `base`: the same objects, no copies.

    Args:
        network: a `UNet` with adapters, which are drawn anew if they are on the meta device.
        base: a `UNet` of the same layers without adapters.

    Raises:
        ValueError: the layers differ.
    """
    own, twins = network, dict(network.unet.named_modules())
    theirs = dict(base.unet.named_modules()) if isinstance(getattr(base, "unet", None), nn.Module) else {}
    for name, module in theirs.items():
        twin = twins.get(name)
        twin = getattr(twin, "base_layer", twin)
        for kind in ("_parameters", "_buffers"):
            shapes = [
                {key: tuple(value.shape) for key, value in getattr(side, kind, {}).items() if value is not None}
                for side in (twin, module)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(f"the base of adapters must have the same layers; {name} has {shapes[1]}")
            getattr(twin, kind).update(getattr(module, kind))
        module.requires_grad_(False)
    if not theirs or any(p.is_meta for name, p in own.unet.named_parameters() if MARK not in name):
        raise ValueError("the base of adapters must be a U-Net of diffusers with the same layers")
    if any(p.is_meta for p in own.unet.parameters()):
        own.lora.draw(own.unet)


def shared_names(module: nn.Module) -> set[str]:
    """Names of the parameters of `module` that belong to the base of adapters; empty without adapters."""
    places = {name for name, part in module.named_modules() if getattr(part, "lora", None) is not None}
    return {
        name
        for name, _ in module.named_parameters(remove_duplicate=False)
        if MARK not in name and any(name.startswith(f"{place}." if place else "") for place in places)
    }
