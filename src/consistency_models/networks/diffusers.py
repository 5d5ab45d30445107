"""The U-Nets of diffusers as networks of this suite: UNet2DModel, and UNet2DConditionModel with text.

The network is diffusers' class, built from the content of the folder's `config.json`; names of parameters are those of
diffusers after `unet.`. diffusers is imported when a network is built (extra `latent`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from consistency_models.conditions import Prompt
from consistency_models.errors import import_extra
from consistency_models.networks.lora import LoRA
from consistency_models.trust import loadable
from consistency_models.values import Size, checked

__all__ = ["CLASSES", "UNet", "guidance_embedding"]

CLASSES = ("UNet2DModel", "UNet2DConditionModel")
"""The classes that a folder may name."""

OTHER_INPUTS: dict[str, Any] = {"class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim_type": None}
OTHER_INPUTS |= {"time_embedding_type": "positional", "attention_type": "default"}
"""Keys with the value that they must have: with another one the network takes inputs that this suite does not give."""


def guidance_embedding(w: Tensor, dim: int) -> Tensor:
    """[sin(1000·w·ω), cos(1000·w·ω)], ω_j = 10000^(-j/(half - 1)), half = ⌊dim/2⌋; shape (B, dim), float32.

    An odd dim is padded with 0. In float32 as in diffusers: the angles reach 15000, and float64 would differ by 7e-4.
    (Latent Consistency Models, arXiv 2310.04378, Sec. 4.3; `get_guidance_scale_embedding` of diffusers.)
    """
    half = dim // 2
    step = torch.log(torch.tensor(10000.0)) / (half - 1)
    omega = torch.exp(torch.arange(half, dtype=torch.float32, device=w.device) * -step)
    angles = (w.float() * 1000.0)[:, None] * omega[None]
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


@loadable()
class UNet(nn.Module):
    """A U-Net of diffusers, F(x, k, labels) with the timestep k as noise label.

    Labels are a `Prompt` for UNet2DConditionModel, with `pooled` and `sizes` if its config has `addition_embed_type`
    "text_time" (SDXL); None for UNet2DModel. Layers that the config of the folder lacks start at zero, so that the
    network with the weights of the folder is the network of the folder: the layer of w, and those of a second time.

    Args:
        config: content of the U-Net's `config.json`, with `_class_name`, one of `CLASSES`. A run replaces None by that
            of the folder `teacher.path` or `init.path`; no network is built without it.
        time_cond_proj_dim: width of the embedding of `Prompt.guidance`, 256 for LCM; None: as in the config, in general
            no such input.
        two_times: the network takes a second noise label, for methods of two times.
        checkpointing: recompute activations in the backward pass, in train mode.
        lora: adapters, which alone are trained; the other weights are those of the teacher, see `lora.share_base`.

    Raises:
        ValueError: the config names another class, unknown keys, or inputs that this suite does not give.
        ModuleNotFoundError: the extra `latent` is not installed.
    """

    needs_package = "diffusers"
    starts_at_zero = ("unet.time_embedding.cond_proj.", "unet.class_embedding.")

    @checked
    def __init__(
        self,
        config: dict[str, Any] | None = None,
        time_cond_proj_dim: Size | None = None,
        two_times: bool = False,
        checkpointing: bool = False,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        config = config or {}
        name, given = config.get("_class_name"), {key: config[key] for key in config if not key.startswith("_")}
        if name not in CLASSES:
            raise ValueError(f"network.config names the class {name!r:.80}; allowed are {', '.join(CLASSES)}")
        self.takes_text = name == "UNet2DConditionModel"
        network = getattr(import_extra("diffusers", "latent"), name)
        _check(given, set(inspect.signature(network.__init__).parameters) - {"self"})
        added = {"time_cond_proj_dim": time_cond_proj_dim or given.get("time_cond_proj_dim")} if self.takes_text else {}
        if time_cond_proj_dim and not self.takes_text:
            raise ValueError(f"network.time_cond_proj_dim needs a network with text; this one is {name}")
        added |= {"class_embed_type": "timestep"} if two_times else {}
        self.unet: Any = network(**given | added)
        self.two_times, self.w_dim = two_times, added.get("time_cond_proj_dim")
        if self.w_dim and not given.get("time_cond_proj_dim"):
            nn.init.zeros_(self.unet.time_embedding.cond_proj.weight)
        if two_times:
            for parameter in self.unet.class_embedding.linear_2.parameters():
                nn.init.zeros_(parameter)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.lora = lora
        if lora is not None:
            if time_cond_proj_dim or two_times:
                raise ValueError("network.lora needs time_cond_proj_dim=null and two_times=false: the base lacks them")
            lora.inject(self.unet)
        self.width = given.get("cross_attention_dim", 1280)
        self.text_time = given.get("addition_embed_type") == "text_time"
        self.image_size, self.channels, self.num_classes = _size(given), given.get("in_channels", 4), 0

    def encode(self, labels: Prompt | None) -> Prompt | None:
        """The prompts, after a check; None without text.

        Raises:
            ValueError: the network needs prompts of other parts or widths, or is given classes.
        """
        if not self.takes_text:
            if isinstance(labels, Tensor):
                raise ValueError("UNet2DModel takes no classes here: set data.conditional=false")
            return None
        used = {"pooled": self.text_time, "sizes": self.text_time, "guidance": self.w_dim}
        parts = [part for part, needed in used.items() if needed]
        if not isinstance(labels, Prompt):
            raise ValueError(f"this network takes text: labels must be a Prompt; got {type(labels).__name__}")
        if missing := [part for part in parts if getattr(labels, part) is None]:
            raise ValueError(f"this network takes prompts with {', '.join(parts)}; missing: {', '.join(missing)}")
        if labels.text.shape[-1] != self.width:
            width = labels.text.shape[-1]
            raise ValueError(f"this network takes text embeddings of width {self.width}; got {width}")
        return labels

    def blank(self, rows: int) -> Prompt | None:
        """Prompts of zeros with 77 tokens, for estimates of costs; None without text."""
        if not self.takes_text:
            return None
        text = torch.zeros(77, self.width)
        parts: dict[str, Tensor] = {"empty": text}
        if self.text_time:
            pooled = torch.zeros(
                self.unet.add_embedding.linear_1.in_features - 6 * self.unet.config.addition_time_embed_dim
            )
            parts |= {"pooled": pooled.expand(rows, -1), "sizes": torch.zeros(rows, 6), "empty_pooled": pooled}
        return Prompt(text.expand(rows, -1, -1), guidance=torch.zeros(rows), **parts)

    def unconditional(self, labels: Prompt | None) -> Prompt | None:
        """The prompts with the empty text; None without text."""
        return None if labels is None else labels.unconditional()

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        labels: Prompt | None = None,
        augment: None = None,
        end_label: Tensor | None = None,
    ) -> Tensor:
        """F, shape (B, out_channels, H, W)."""
        options: dict[str, Any] = {"class_labels": end_label} if self.two_times else {}
        if labels is not None:
            options["encoder_hidden_states"] = labels.text.to(x.dtype)  # one place for the dtype
            if self.text_time and labels.pooled is not None and labels.sizes is not None:
                added = {"text_embeds": labels.pooled.to(x.dtype), "time_ids": labels.sizes.to(x.dtype)}
                options["added_cond_kwargs"] = added
            if self.w_dim and labels.guidance is not None:
                options["timestep_cond"] = guidance_embedding(labels.guidance, self.w_dim).to(x.dtype)
        return self.unet(x, noise_label, return_dict=False, **options)[0]


def _check(given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"network.config has keys that this version of diffusers does not know: {', '.join(unknown)}")
    for key, value in OTHER_INPUTS.items():
        if given.get(key, value) != value:
            raise ValueError(
                f"network.config has {key}={given[key]!r:.80}; allowed is {value}: other inputs are needed"
            )
    if given.get("addition_embed_type") not in (None, "text_time"):
        raise ValueError(
            f"network.config has addition_embed_type={given['addition_embed_type']!r:.80}; allowed are null "
            "and text_time (SDXL)"
        )
    if given.get("out_channels", given.get("in_channels")) not in (
        given.get("in_channels"),
        2 * given.get("in_channels", 0),
    ):
        raise ValueError(
            f"network.config has in_channels={given.get('in_channels')} and out_channels="
            f"{given.get('out_channels')}; inpainting and other U-Nets with further channels are not supported"
        )


def _size(given: Mapping[str, Any]) -> int:
    size = given.get("sample_size")
    sizes = {size} if isinstance(size, int) else set(size or ())
    if len(sizes) != 1 or not all(type(each) is int and each > 0 for each in sizes):
        raise ValueError(f"network.config has sample_size={size!r:.80}; allowed is one number, or two equal ones")
    return sizes.pop()
