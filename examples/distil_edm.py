"""Distil a diffusion model into a consistency model of one step.

    python examples/distil_edm.py edm-cifar10-32x32-uncond-vp.pkl FOLDER --method ect
    python examples/distil_edm.py runs/teacher_digits/DATE_TIME FOLDER --method cd

The teacher is an official pickle of EDM, which is read without running its code, or a run of `model=teacher`. FOLDER
holds images of the teacher's size. `ect` is easy consistency tuning (arXiv 2406.14548): the teacher gives the initial
weights. `cd` is consistency distillation (arXiv 2303.01469): the teacher also solves its ODE in every step.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from lightning import Trainer
from torchvision.utils import save_image

import consistency_models
from consistency_models import methods, noise, optim
from consistency_models.data import DataModule, image_folder
from consistency_models.losses import InverseGap, PseudoHuber, SquaredL2, Uniform
from consistency_models.sampling import Consistency, Generator


def method_of(name: str, teacher: Generator, steps: int, lr: float) -> methods.Method:
    """The method, whose network starts from the teacher's weights."""
    sigma_data = teacher.model.preconditioning.sigma_data
    network = copy.deepcopy(teacher.model.network).requires_grad_(True).train()
    shared = {"optimizer": partial(optim.RAdam, lr=lr), "learning_rate": optim.Linear(), "total_steps": steps}
    if name == "ect":
        return methods.EasyConsistencyTuning(
            model=noise.Preconditioned(network, noise.EDM(sigma_data)),
            schedule=noise.ECTSchedule(),
            distance=PseudoHuber(c=0.0),
            weighting=InverseGap(),
            **shared,
        )
    return methods.ConsistencyDistillation(
        model=noise.Preconditioned(network, noise.Boundary(sigma_data)),
        schedule=noise.KarrasUniform(noise.Constant(18)),
        distance=SquaredL2(),
        weighting=Uniform(),
        target_ema=noise.ConstantDecay(0.95),
        teacher=teacher.model,
        **shared,
    )


def main(arguments: list[str] | None = None) -> Generator:
    """Distil, write weights and samples of one step, and return the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="an official pickle of EDM, or a run of model=teacher")
    parser.add_argument(
        "images", help="a folder or zip of images; with sub-folders as classes for a teacher of classes"
    )
    parser.add_argument("--method", choices=("ect", "cd"), default="ect")
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", default="student", help="writes OUT.pt and OUT.png")
    args = parser.parse_args(arguments)

    teacher = consistency_models.load(args.teacher)
    channels, image_size, _ = teacher.shape
    images = image_folder(args.images, image_size, channels)
    data = DataModule(images, batch_size=args.batch_size, conditional=teacher.num_classes > 0)
    method = method_of(args.method, teacher, args.steps, args.lr)
    options = {"use_distributed_sampler": False, "enable_checkpointing": False, "logger": False}
    Trainer(max_steps=args.steps, max_epochs=-1, **options).fit(method, data)

    sampler = partial(Consistency.for_steps, sigma_min=0.0 if args.method == "ect" else 0.002)
    student = Generator(method.model.eval(), teacher.shape, sampler, teacher.num_classes)
    torch.save(student.model.network.state_dict(), f"{args.out}.pt")
    save_image(student.sample(64), f"{args.out}.png", normalize=True, value_range=(-1, 1))
    return student


if __name__ == "__main__":
    main()
