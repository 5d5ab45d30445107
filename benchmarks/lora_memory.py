"""Memory of a step of LCM-LoRA on Stable Diffusion, on paper: tensors have shapes and no values.

    python benchmarks/lora_memory.py                 # SD 1.5 at 512 px, SDXL at 1024 px; minutes
    python benchmarks/lora_memory.py --sizes 64 128  # other latents

Nothing is downloaded: the U-Nets are built from their published configurations. The step is that of model=lcm with
network=diffusers_lora: the student, the guided teacher, and the student again as its own target.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from consistency_models.app.plan import GIB, cost_of
from consistency_models.losses import ElementwiseHuber, Uniform
from consistency_models.methods.cd import ConsistencyDistillation
from consistency_models.networks.diffusers import UNet
from consistency_models.networks.lora import LoRA, share_base
from consistency_models.noise import Discrete, Preconditioned, TableUniform
from consistency_models.sampling.solvers import Euler
from consistency_models.teachers import Guided

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
SD15 = {  # stable-diffusion-v1-5, unet/config.json
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*[CROSS[0]] * 3, PLAIN[0]],
    "up_block_types": [PLAIN[1], *[CROSS[1]] * 3],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {  # stable-diffusion-xl-base-1.0, unet/config.json
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [PLAIN[0], *[CROSS[0]] * 2],
    "up_block_types": [*[CROSS[1]] * 2, PLAIN[1]],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def measured(config: dict, size: int, checkpointing: bool) -> str:
    """A line of the table."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        teacher = UNet(config)
    with torch.device("meta"):
        network = UNet(config, checkpointing=checkpointing, lora=LoRA())
    share_base(network, teacher)
    base = Preconditioned(teacher, Discrete())
    base.origin = {}
    scalings = Discrete(boundary=10.0)
    method = ConsistencyDistillation(
        model=Preconditioned(network, scalings),
        schedule=TableUniform(scalings),
        distance=ElementwiseHuber(),
        weighting=Uniform(),
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
        learning_rate=lambda k, K, images: 1.0,
        total_steps=1000,
        solver=Euler(),
        teacher=Guided(base, None),
    ).train()
    data = {"batch_size": 16, "channels": 4, "image_size": size, "network_classes": 0}
    cost = cost_of(method, {"data": data, "seed": 0, "ema": {"_target_": "consistency_models.optim.ema.Constant"}})
    frozen = sum(p.numel() for p in base.parameters())
    peaks = " ".join(f"{cost.peak_bytes(images) / GIB:8.1f}" for images in (1, 4, 16))
    fixed = cost.fixed_bytes / GIB
    return f"{frozen:>13,} {cost.parameters:>12,} {fixed:8.1f} {peaks}   {cost.flops:.3g}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=(64, 128), help="size of a latent of SD 1.5 and of SDXL")
    given = parser.parse_args()
    print("GiB in float32; micro-batches of 1, 4 and 16; FLOP an image")
    print(f"{'':24} {'frozen':>13} {'trained':>12} {'fixed':>8} {'1':>8} {'4':>8} {'16':>8}   FLOP")
    for name, config, size in zip(("SD 1.5", "SDXL"), (SD15, SDXL), given.sizes):
        for checkpointing in (False, True):
            what = f"{name} {size}{', checkpointing' if checkpointing else ''}"
            print(f"{what:24} {measured(config, size, checkpointing)}", flush=True)


if __name__ == "__main__":
    main()
