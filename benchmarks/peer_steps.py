"""Training steps of other projects, with networks and losses that are imported from a checkout of each project.

Steps of edm and ect follow their training loops: uint8 images to [-1, 1], loss, backward pass, replacement of NaN in
each gradient, optimiser, average. The step of openai is its `CMTrainLoop.run_step`. Data loaders are left out, and for
edm and ect also the log and DDP, which favours these projects.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

__all__ = ["DROPOUT", "FILES", "PEERS", "SIZE", "on_a_cpu"]

SIZE, DROPOUT = 32, 0.13  # dropout of edm's and ect's commands; openai's command has none
FILES = {"edm": "training/loss.py", "ect": "training/loss.py", "openai": "cm/train_util.py"}  # of a checkout
Peer = tuple[nn.Module, Callable[[], None]]  # the network and its training step


@contextmanager
def imports_from(checkout: Path) -> Iterator[None]:
    """Import modules of a checkout, and forget them afterwards: edm and ect have packages of the same names."""
    before = set(sys.modules)
    try:
        with patch.object(sys, "path", [str(checkout), *sys.path]):
            yield
    finally:
        for name in set(sys.modules) - before:
            if (checkout / name.partition(".")[0]).is_dir():
                del sys.modules[name]


def on_a_cpu() -> Any:
    """Return a context in which ect and openai repeat dropout masks on a CPU; they use the generator of the GPU."""
    return patch.multiple(torch.cuda, get_rng_state=torch.get_rng_state, set_rng_state=torch.set_rng_state)


def edm(checkout: Path, images: Tensor, args: Any, precond: str, loss: str, optimizer: Any) -> Peer:
    """Build the step of edm's or ect's training loop, with DDPM++.

    Args:
        checkout: root of the checkout.
        images: a batch, (B, 3, SIZE, SIZE) uint8.
        args: `channels` and `blocks` of the network.
        precond: class of the preconditioned network.
        loss: class of the loss.
        optimizer: maps the weights to an optimiser.
    """
    with imports_from(checkout):
        size = {"model_channels": args.channels, "num_blocks": args.blocks, "channel_mult": [2, 2, 2]}
        make = getattr(importlib.import_module("training.networks"), precond)
        net = make(img_resolution=SIZE, img_channels=3, model_type="SongUNet", dropout=DROPOUT, **size).train()
        loss_fn = getattr(importlib.import_module("training.loss"), loss)()
        average = copy.deepcopy(net).requires_grad_(False)
    if hasattr(loss_fn, "update_schedule"):
        loss_fn.update_schedule(7)  # a late stage, in which no target is at level 0
    weights = list(net.parameters())
    opt = optimizer(weights)

    def step() -> None:
        opt.zero_grad()
        losses = loss_fn(net=net, images=images.float() / 127.5 - 1)
        (losses.sum() / len(images)).backward()
        for weight in weights:
            weight.grad.nan_to_num_(0.0, 1e5, -1e5)
        opt.step()
        for mean, weight in zip(average.parameters(), weights):
            mean.lerp_(weight.detach(), 1e-4)

    return net, step


def openai(checkout: Path, images: Tensor, args: Any) -> Peer:
    """Build the step of openai's consistency training, with its ADM, and squared l2 instead of LPIPS; see `edm`."""
    with imports_from(checkout):
        unet, diffusion, train_util, logger = (
            importlib.import_module(f"cm.{name}") for name in ("unet", "karras_diffusion", "train_util", "logger")
        )
        logger.configure(dir=tempfile.gettempdir(), format_strs=[])  # no output
        if importlib.util.find_spec("flash_attn") is None:  # it requires a GPU; this is the code's other attention
            unet.AttentionBlock = partial(unet.AttentionBlock, attention_type="legacy")
        size = {"model_channels": args.channels, "num_res_blocks": args.blocks, "channel_mult": (1, 2, 2, 2)}
        kind = {"attention_resolutions": (2, 4), "num_head_channels": 32, "resblock_updown": True}
        make = partial(unet.UNetModel, SIZE, 3, out_channels=3, use_scale_shift_norm=True, **size, **kind)
        net = make().train()
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        loop = train_util.CMTrainLoop(
            model=net,
            target_model=make(),
            teacher_model=None,
            teacher_diffusion=None,
            training_mode="consistency_training",
            diffusion=diffusion.KarrasDenoiser(distillation=True, loss_norm="l2", weight_schedule="uniform"),
            ema_scale_fn=lambda step: (0.95, 20),
            ema_rate="0.9999",
            lr=1e-4,
            total_training_steps=10**6,
            data=None,
            batch_size=len(images),
            microbatch=-1,
            log_interval=10,
            save_interval=-1,
            resume_checkpoint="",
        )
        torch.distributed.destroy_process_group()  # used while the loop is built only
    x = images.float() / 127.5 - 1  # its data loader converts the images
    return net, lambda: loop.run_step(x, {})


PEERS: dict[str, Callable[..., Peer]] = {
    "edm": partial(edm, precond="EDMPrecond", loss="EDMLoss", optimizer=partial(torch.optim.Adam, lr=1e-3)),
    "ect": partial(edm, precond="ECMPrecond", loss="ECMLoss", optimizer=partial(torch.optim.RAdam, lr=1e-4)),
    "openai": openai,
}
