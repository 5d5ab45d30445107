"""Tiny pipelines of diffusers with random weights, saved to folders: Stable Diffusion and Stable Diffusion XL.

Everything is built from configurations with the classes of diffusers and transformers. Nothing is downloaded.
"""

import json

import torch

LATENT = 8  # size of a latent; images are twice as large


def tokenizer(folder):
    """A CLIPTokenizer of bytes: 256 bytes, their forms at the end of a word, and two specials."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def text_config(width=32, projection=32):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=2 * LATENT,
    ).eval()


def unet(**options):
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**settings | options).eval()


def scheduler(**options):
    from diffusers import DDIMScheduler

    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    return DDIMScheduler(**settings | {"set_alpha_to_one": False, "steps_offset": 1} | options)


def save_sd(folder, prediction_type="epsilon", seed=0, **unet_options):
    """Save a StableDiffusionPipeline to a folder and return the folder."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=vae(),
            text_encoder=CLIPTextModel(text_config()).eval(),
            tokenizer=tokenizer(folder / "tokenizer"),
            unet=unet(**unet_options),
            scheduler=scheduler(prediction_type=prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def save_sdxl(folder, seed=0):
    """Save a StableDiffusionXLPipeline to a folder and return the folder."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=CLIPTextModel(text_config()).eval(),
            text_encoder_2=CLIPTextModelWithProjection(text_config(projection=24)).eval(),
            tokenizer=tokenizer(folder / "tokenizer"),
            tokenizer_2=tokenizer(folder / "tokenizer_2"),
            unet=unet(
                cross_attention_dim=64,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 24,
            ),
            scheduler=scheduler(),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder
