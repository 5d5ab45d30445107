"""Train a consistency model on digits in plain Python, without Hydra and without configuration files.

    python examples/train_from_python.py                    # minutes on two CPU cores; writes digits.png
    python examples/train_from_python.py --steps 300        # blurred digits

Improved consistency training, arXiv 2310.14189, with the numbers of conf/recipe/ict_digits.yaml.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from lightning import Trainer, seed_everything
from torchvision.utils import save_image

from consistency_models.data import DataModule, digits
from consistency_models.losses import InverseGap, PseudoHuber
from consistency_models.methods import ImprovedConsistencyTraining
from consistency_models.networks import SongUNet
from consistency_models.noise import Boundary, Doubling, KarrasLogNormal, Preconditioned
from consistency_models.optim import Linear, RAdam
from consistency_models.sampling import Consistency, Generator


def main(arguments: list[str] | None = None) -> Generator:
    """Train, write samples of one and of two steps, and return the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=950)
    parser.add_argument("--out", default="digits.png")
    args = parser.parse_args(arguments)

    seed_everything(0)
    data = DataModule(digits(), batch_size=64, conditional=True)
    network = SongUNet(8, 1, 10, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=())
    method = ImprovedConsistencyTraining(
        model=Preconditioned(network, Boundary(sigma_data=0.75)),
        schedule=KarrasLogNormal(Doubling(s0=10, s1=40)),
        distance=PseudoHuber(),
        weighting=InverseGap(),
        optimizer=partial(RAdam, lr=4e-3),
        learning_rate=Linear(decay=0.5),
        total_steps=args.steps,
    )
    options = {"use_distributed_sampler": False, "enable_checkpointing": False, "logger": False}
    Trainer(max_steps=args.steps, max_epochs=-1, **options).fit(method, data)

    sampler = partial(Consistency.for_steps, sigma_mid=2.0)
    generator = Generator(method.model.eval(), data.shape, sampler, data.num_classes)
    rows = torch.cat([generator.sample(30, steps=steps, seed=1) for steps in (1, 2)])
    save_image(rows, args.out, nrow=30, normalize=True, value_range=(-1, 1))
    return generator


if __name__ == "__main__":
    main()
