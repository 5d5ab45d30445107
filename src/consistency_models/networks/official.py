"""Constructors of the published networks with the arguments of the authors' code, as official checkpoints store them.

Each function has the name, the arguments and the defaults of the published class, and returns a network of this
package. The `state_dict` of the network has the same names and shapes in the same order. Arguments without a
counterpart raise TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from consistency_models.networks.adm import DhariwalUNet as Dhariwal
from consistency_models.networks.edm2 import EDM2
from consistency_models.networks.layers import FourierEmbedding, PositionalEmbedding
from consistency_models.networks.openai_adm import OpenAIUNet
from consistency_models.networks.song import SongUNet as Song
from consistency_models.trust import loadable

__all__ = ["DhariwalUNet", "Precond", "SongUNet", "UNetModel"]


@loadable()
def SongUNet(
    img_resolution: int,
    in_channels: int,
    out_channels: int,
    label_dim: int = 0,
    augment_dim: int = 0,
    model_channels: int = 128,
    channel_mult: Sequence[int] = (1, 2, 2, 2),
    channel_mult_emb: int = 4,
    num_blocks: int = 4,
    attn_resolutions: Sequence[int] = (16,),
    dropout: float = 0.10,
    label_dropout: float = 0.0,
    embedding_type: str = "positional",
    channel_mult_noise: int = 1,
    encoder_type: Literal["standard", "skip", "residual"] = "standard",
    decoder_type: Literal["standard", "skip"] = "standard",
    resample_filter: Sequence[float] = (1, 1),
) -> Song:
    """EDM's and ECT's DDPM++ and NCSN++."""
    return Song(
        *(img_resolution, in_channels, label_dim, augment_dim, dropout),
        label_dropout=label_dropout,
        out_channels=out_channels,
        model_channels=model_channels,
        channel_mult=channel_mult,
        channel_mult_emb=channel_mult_emb,
        channel_mult_noise=channel_mult_noise,
        num_blocks=num_blocks,
        attn_resolutions=attn_resolutions,
        embedding={"positional": PositionalEmbedding, "fourier": FourierEmbedding}[embedding_type],
        encoder=encoder_type,
        decoder=decoder_type,
        resample_filter=resample_filter,
    )


@loadable()
def DhariwalUNet(
    img_resolution: int,
    in_channels: int,
    out_channels: int,
    label_dim: int = 0,
    augment_dim: int = 0,
    model_channels: int = 192,
    channel_mult: Sequence[int] = (1, 2, 3, 4),
    channel_mult_emb: int = 4,
    num_blocks: int = 3,
    attn_resolutions: Sequence[int] = (32, 16, 8),
    dropout: float = 0.10,
    label_dropout: float = 0.0,
) -> Dhariwal:
    """EDM's ADM."""
    return Dhariwal(
        *(img_resolution, in_channels, label_dim, augment_dim, dropout),
        label_dropout=label_dropout,
        out_channels=out_channels,
        model_channels=model_channels,
        channel_mult=channel_mult,
        channel_mult_emb=channel_mult_emb,
        num_blocks=num_blocks,
        attn_resolutions=attn_resolutions,
    )


@loadable()
def UNetModel(
    image_size: int,
    in_channels: int,
    model_channels: int,
    out_channels: int,
    num_res_blocks: int,
    attention_resolutions: Sequence[int],
    dropout: float = 0.0,
    channel_mult: Sequence[int] = (1, 2, 4, 8),
    num_classes: int | None = None,
    num_heads: int = 1,
    num_head_channels: int = -1,
    use_scale_shift_norm: bool = False,
    resblock_updown: bool = False,
    legacy_order: bool = False,
    noise_scale: float = 1000.0,
) -> OpenAIUNet:
    """OpenAI's ADM. `attention_resolutions` are downsampling factors; the last two arguments are not OpenAI's."""
    heads: dict[str, Any] = {"heads": num_heads} if num_head_channels == -1 else {"head_channels": num_head_channels}
    return OpenAIUNet(
        *(image_size, in_channels, num_classes or 0, 0, dropout),
        out_channels=out_channels,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_blocks=num_res_blocks,
        attn_resolutions=[image_size // factor for factor in attention_resolutions],
        **heads,
        adaptive_scale=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        legacy_order=legacy_order,
        noise_scale=noise_scale,
    )


@loadable()
def Precond(
    img_resolution: int,
    img_channels: int,
    label_dim: int,
    use_fp16: bool = True,
    sigma_data: float = 0.5,
    logvar_channels: int = 128,
    model_channels: int = 192,
    channel_mult: Sequence[int] = (1, 2, 3, 4),
    num_blocks: int = 3,
    attn_resolutions: Sequence[int] = (16, 8),
    channels_per_head: int = 64,
    dropout: float = 0.0,
    channel_mult_noise: int | None = None,
    channel_mult_emb: int | None = None,
    label_balance: float = 0.5,
    concat_balance: float = 0.5,
    resample_filter: Sequence[float] = (1, 1),
    res_balance: float = 0.3,
    attn_balance: float = 0.3,
    clip_act: float | None = 256,
    dropout_res: int | None = None,
) -> EDM2:
    """EDM2's and, with dropout_res, ECT's.

    The network has no preconditioning, so sigma_data is not used; autocast selects the precision.
    """
    del use_fp16, sigma_data
    return EDM2(
        *(img_resolution, img_channels, label_dim, 0, dropout),
        dropout_resolution=dropout_res,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_blocks=num_blocks,
        attn_resolutions=attn_resolutions,
        head_channels=channels_per_head,
        channel_mult_noise=channel_mult_noise,
        channel_mult_emb=channel_mult_emb,
        label_balance=label_balance,
        concat_balance=concat_balance,
        resample_filter=resample_filter,
        res_balance=res_balance,
        attn_balance=attn_balance,
        clip_act=clip_act,
        logvar_channels=logvar_channels,
    )
