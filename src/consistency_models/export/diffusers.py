"""Export of a consistency model to a folder for diffusers: ConsistencyModelPipeline, or the pipeline of a teacher.

Students with a U-Net of diffusers are exported by `pipelines.to_pipeline`. For all others
`ConsistencyModelPipeline.from_pretrained(FOLDER)` samples the same images from the same noise. The pipeline supports
one network and one preconditioning, those of OpenAI's files: `OpenAIUNet` with residual resampling, and `Boundary`.
EDM's ADM has the same architecture, but embeds ln(σ)/4 where diffusers embeds 250·ln(σ); weights cannot compensate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from consistency_models.errors import import_extra
from consistency_models.export.pipelines import to_pipeline
from consistency_models.networks.diffusers import UNet
from consistency_models.networks.openai_adm import AttentionBlock, OpenAIUNet, ResBlock
from consistency_models.noise.preconditioning import Boundary
from consistency_models.sampling.generator import Generator

__all__ = ["to_diffusers"]

RESIDUAL = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESIDUAL |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
TOP = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
TOP |= {"class_embedding": "label_emb", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}


def to_diffusers(
    generator: Generator, folder: Path | str, pipeline: Path | str | None = None, merge: bool = False
) -> None:
    """Write the folder; it is created if it does not exist.

    Args:
        generator: result of `consistency_models.load`.
        folder: folder to write.
        pipeline, merge: see `pipelines.to_pipeline`, for students with a U-Net of diffusers only.

    Raises:
        ValueError: diffusers has no such network or preconditioning, or an argument has no use for this network.
        ModuleNotFoundError: the extra `export` is not installed.
        OSError: it cannot be written.
    """
    if isinstance(generator.model.network, UNet):
        to_pipeline(generator, folder, pipeline, merge)
        return
    if pipeline is not None or merge:
        raise ValueError("--pipeline and --merge are for students with a U-Net of diffusers (network=diffusers)")
    diffusers = import_extra("diffusers")
    network, scalings = generator.model.network, generator.model.preconditioning
    if type(network) is not OpenAIUNet or type(scalings) is not Boundary:
        raise ValueError(
            "diffusers' ConsistencyModelPipeline takes OpenAIUNet with the preconditioning Boundary; got "
            f"{type(network).__name__} with {type(scalings).__name__}: train with network=openai_adm to export"
        )
    unet = diffusers.UNet2DModel(**arguments(network)).eval()
    unet.load_state_dict(weights(network))
    sampler = generator.make_sampler(steps=1)
    scheduler = diffusers.CMStochasticIterativeScheduler(
        sigma_min=scalings.sigma_min,
        sigma_max=sampler.sigmas[0],
        sigma_data=scalings.sigma_data,
        clip_denoised=getattr(sampler, "clip", False),
    )
    diffusers.ConsistencyModelPipeline(unet, scheduler).save_pretrained(folder)


def arguments(network: OpenAIUNet) -> dict[str, object]:
    """Arguments of diffusers' UNet2DModel for the same network."""
    residual = [block for block in network.modules() if isinstance(block, ResBlock)]
    attention = [block for block in network.modules() if isinstance(block, AttentionBlock)]
    head_channels = {block.norm.num_channels // block.heads for block in attention}
    levels: list[list[Any]] = [[]]  # of each level, the blocks that do not resample
    inputs: list[Any] = list(network.input_blocks)
    for blocks in inputs[1:]:
        if not isinstance(blocks[0], ResBlock):
            raise ValueError("resblock_updown must be true for diffusers; got a network that resamples by convolutions")
        if blocks[0].resample is None:
            levels[-1].append(blocks)
        else:
            levels.append([])
    widths = [level[0][0].in_layers[2].out_channels for level in levels]
    if len(head_channels) > 1 or network.map_noise.scale != 1000 or widths[0] != network.time_embed[0].in_features:
        raise ValueError(
            "diffusers needs head_channels (not heads), noise_scale 1000 and channel_mult that begins with 1; got "
            f"heads of {sorted(head_channels)} channels, {network.map_noise.scale}, and a first level of {widths[0]}"
        )
    attends = [len(level[0]) > 1 for level in levels]
    return {
        "sample_size": network.image_size,
        "in_channels": network.channels,
        "out_channels": network.out[2].out_channels,
        "num_class_embeds": network.num_classes or None,
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "attention_head_dim": head_channels.pop(),
        "down_block_types": ["AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attends],
        "up_block_types": ["AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attends)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift" if residual[0].adaptive_scale else "default",
        "attn_norm_num_groups": 32,
    }


def weights(network: OpenAIUNet) -> dict[str, Tensor]:
    """The network's weights under diffusers' names."""
    found = {f"{theirs}.{kind}": value for theirs, ours in TOP.items() for kind, value in _state(network, ours)}
    middle = {"mid_block.resnets.0": 0, "mid_block.attentions.0": 1, "mid_block.resnets.1": 2}
    places = {theirs: network.middle_block[i] for theirs, i in middle.items()}
    sides: tuple[tuple[str, Any, str], ...] = (
        ("down", list(network.input_blocks)[1:], "downsamplers"),
        ("up", network.output_blocks, "upsamplers"),
    )
    for side, parts, sampler in sides:
        level = layer = 0
        for part in parts:
            for block in part:
                if isinstance(block, AttentionBlock):
                    places[f"{side}_blocks.{level}.attentions.{layer - 1}"] = block
                elif block.resample is None:
                    places[f"{side}_blocks.{level}.resnets.{layer}"] = block
                    layer += 1
                else:
                    places[f"{side}_blocks.{level}.{sampler}.0"] = block
                    level, layer = level + 1, 0
    for theirs, block in places.items():
        found |= {f"{theirs}.{name}": value for name, value in _of_block(block).items()}
    return found


def _of_block(block: nn.Module) -> dict[str, Tensor]:
    if isinstance(block, ResBlock):
        return {f"{theirs}.{kind}": value for theirs, ours in RESIDUAL.items() for kind, value in _state(block, ours)}
    named = {f"group_norm.{kind}": value for kind, value in _state(block, "norm")}
    named |= {f"to_out.0.{kind}": value.squeeze() for kind, value in _state(block, "proj_out")}
    for kind, value in _state(block, "qkv"):
        order = (block.heads, 3, -1) if block.legacy_order else (3, block.heads, -1)
        parts = value.flatten(1).squeeze(1) if kind == "weight" else value
        parts = parts.unflatten(0, order).unbind(1 if block.legacy_order else 0)
        named |= {f"to_{name}.{kind}": part.flatten(0, 1) for name, part in zip("qkv", parts)}
    return named


def _state(module: nn.Module, name: str) -> list[tuple[str, Tensor]]:
    """Names and values of the part `name` of a module; empty if there is no such part."""
    prefix = f"{name}."
    return [(key.removeprefix(prefix), value) for key, value in module.state_dict().items() if key.startswith(prefix)]
