"""The one LightningDataModule: any source of images, in steps that depend on nothing but the seed and the step."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from consistency_models.data.batch import Batch
from consistency_models.data.image_set import ImageSet
from consistency_models.data.mixture import Mixture
from consistency_models.data.sampler import StepSampler
from consistency_models.errors import DataError
from consistency_models.trust import loadable
from consistency_models.values import Count, Positive, Size, Text, checked

__all__ = ["DataModule"]

RESIDENT_BYTES = 2 << 30  # a set up to this size is kept on the GPU


@loadable()
class DataModule(LightningDataModule):
    """Micro-batches of a source, from the trainer's global step on.

    The trainer must leave the sampler alone: `use_distributed_sampler=False`, and `overfit_steps` in place of its own
    `overfit_batches`. Images travel as uint8 and are flipped and scaled to [-1, 1] on the device. A set that fits lies
    on the GPU as uint8, so that only indices travel.

    Args:
        source: an `ImageSet`, or a `Mixture`, whose images are drawn afresh in every step.
        batch_size: images of one optimiser step, over all processes and accumulated micro-batches.
        seed: the run's seed.
        sigma_data: the σ_data that the preconditioning is given; a warning where the data's own differs by more than a
            tenth. None: not compared.
        workers: processes that read ahead; 0 reads in the training process. The batches are the same.
        flip: mirror every second image (at random) left to right.
        conditional: hand over labels.
        resident: keep the whole set on the device; "auto" does so on CUDA up to 2 GiB.
        overfit_steps: repeat the images of the first so many steps; 0 goes through all.
        name, root: what the configuration calls the data and where they lie, for messages.
        image_size, channels, num_classes: what the configuration states of the data; compared with the source where
            given.

    Raises:
        DataError: the source is not what the configuration states, or has no labels to be conditional on.
        ValueError: batch_size is not a multiple of processes x micro-batches.
    """

    @checked
    def __init__(
        self,
        source: ImageSet | Mixture,
        batch_size: Size,
        seed: Count = 0,
        sigma_data: Positive | None = None,
        workers: Count = 0,
        flip: bool = False,
        conditional: bool = False,
        resident: bool | Literal["auto"] = "auto",
        overfit_steps: Count = 0,
        name: Text | None = None,
        root: Text | None = None,
        image_size: Size | None = None,
        channels: Size | None = None,
        num_classes: Count | None = None,
    ) -> None:
        super().__init__()
        name = name or source.name
        origin = f"{name} ({root})" if root else name
        facts = {"channels": source.shape[0], "image_size": source.shape[-1], "num_classes": source.num_classes}
        for key, stated in {"channels": channels, "image_size": image_size, "num_classes": num_classes}.items():
            if stated is not None and stated != facts[key]:
                raise DataError(f"data.{key} is {stated}, but {origin} has {facts[key]}: set data.{key}={facts[key]}")
        if conditional and not source.num_classes:
            raise DataError(f"data.conditional is true, but {origin} has no classes: set data.conditional=false")
        if overfit_steps and source.n is None:
            raise DataError(f"data.overfit_steps is {overfit_steps}, but {origin} has no fixed images: set it to 0")
        self.source, self.batch_size, self.seed, self.sigma_data = source, batch_size, seed, sigma_data
        self.workers, self.flip, self.conditional, self.resident = workers, flip, conditional, resident
        self.overfit_steps, self.name, self.origin = overfit_steps, name, origin

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.source.shape

    @property
    def num_classes(self) -> int:
        """Classes that the network is conditioned on; 0 when training is unconditional."""
        return self.source.num_classes if self.conditional else 0

    def setup(self, stage: str) -> None:
        """Compare the stated σ_data with the data's own."""
        measured = self.source.sigma_data
        if self.sigma_data is not None and abs(self.sigma_data - measured) > 0.1 * measured:
            rank_zero_warn(
                f"data.sigma_data is {self.sigma_data}, but {self.origin} measures {measured:.3f}: "
                f"the preconditioning is off; set data.sigma_data={measured:.3f}"
            )

    def train_dataloader(self) -> DataLoader:
        """Endless micro-batches of this process, beginning at the trainer's global step."""
        trainer = self.trainer
        sampler = StepSampler(
            self.source.n,
            self.batch_size,
            self.seed,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            accumulate=trainer.accumulate_grad_batches,
            start=lambda: trainer.global_step,
            period=self.overfit_steps,
        )
        device = trainer.strategy.root_device
        resident = self._lies_on(device)
        workers = 0 if resident else self.workers
        return DataLoader(
            self.source.to(device) if resident else self.source,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_training,
            pin_memory=device.type == "cuda" and not resident,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Flip and scale the images, on the device."""
        images = batch.images
        if self.flip:
            mirrored = (batch.rows.rand("flip") < 0.5).to(images.device, non_blocking=True)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if images.dtype == torch.uint8:
            images = images.float().div_(127.5).sub_(1)
        return replace(batch, images=images, labels=batch.labels if self.conditional else None)

    def _lies_on(self, device: torch.device) -> bool:
        if device.type == "cpu" or self.source.n is None:
            return False
        if self.resident == "auto":
            return device.type == "cuda" and self.source.images.nbytes <= RESIDENT_BYTES
        return self.resident


def _leave_signals_to_the_training(worker: int) -> None:
    """Ignore the first of each signal; the second has its usual effect, as in the training.

    Slurm sends a signal to every process of a step, and a worker that dies fails the training.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda received, frame: signal.signal(received, signal.SIG_DFL))
