"""The LightningDataModule of every source of images. The images of a step depend only on the seed and the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from consistency_models.conditions import Prompt
from consistency_models.data.batch import Batch
from consistency_models.data.sampler import StepSampler
from consistency_models.data.source import Source, check_facts
from consistency_models.data.workers import WorkerLoader
from consistency_models.errors import DataError
from consistency_models.random import BatchRandom
from consistency_models.trust import loadable
from consistency_models.values import Count, Interval, Positive, Share, Size, Text, checked

__all__ = ["DataModule"]

RESIDENT_BYTES = 2 << 30  # largest set that resident="auto" holds on the GPU


@loadable()
class DataModule(LightningDataModule):
    """Micro-batches of a source, starting at the trainer's global step.

    The trainer must not replace the sampler: set `use_distributed_sampler=False`, and use `overfit_steps` instead of
    the trainer's `overfit_batches`. Images are transferred as uint8, and flipped and scaled to [-1, 1] on the device. A
    small set is held on the GPU as uint8, and only indices are transferred.

    Args:
        source: the images, such as an `ImageSet`, `Latents`, or a `Mixture`, which draws new images in every step.
        batch_size: images of one optimiser step, over all processes and accumulated micro-batches.
        seed: the run's seed.
        sigma_data: σ_data of the preconditioning. A warning is shown if the measured σ_data differs by more than a
            tenth. None: no comparison.
        workers: number of worker processes; 0 reads in the training process. The batches do not depend on it.
        flip: flip each image horizontally with probability ½.
        conditional: include labels in the batches.
        resident: hold the whole set of decoded images on the device; "auto" does so on CUDA up to 2 GiB.
        guidance_w: (low, high) of w of cond + w·(cond - uncond), drawn uniformly for each caption; None draws nothing.
        caption_dropout: share of captions that are replaced by the empty one.
        overfit_steps: number of steps whose images are repeated; 0 uses all images.
        name, root: name of the data, and their folder or file, for messages.
        image_size, channels, num_classes: height and width in pixels, channels and classes of the data. Values other
            than None are compared with the source.

    Raises:
        DataError: the source differs from the configuration, or has no labels for conditional training.
        ValueError: batch_size is not a multiple of processes x micro-batches.
    """

    @checked
    def __init__(
        self,
        source: Source,
        batch_size: Size,
        seed: Count = 0,
        sigma_data: Positive | None = None,
        workers: Count = 0,
        flip: bool = False,
        conditional: bool = False,
        resident: bool | Literal["auto"] = "auto",
        guidance_w: Interval | None = None,
        caption_dropout: Share = 0.0,
        overfit_steps: Count = 0,
        name: Text | None = None,
        root: Text | None = None,
        image_size: Size | None = None,
        channels: Size | None = None,
        num_classes: Count | None = None,
    ) -> None:
        super().__init__()
        name = name or source.name
        origin = check_facts(source, name, root, image_size, channels, num_classes)
        if conditional and not source.num_classes:
            raise DataError(f"data.conditional is true, but {origin} has no classes: set data.conditional=false")
        if source.is_latent and flip:
            reason = "a flipped latent is not the latent of the flipped image"
            raise DataError(f"data.flip is true, but {reason}: leave data.flip out")
        if resident is True and source.nbytes is None:
            reason = "is not a set of decoded images"
            raise DataError(f"data.resident is true, but {origin} {reason}: leave data.resident out")
        for key, value in {"guidance_w": guidance_w, "caption_dropout": caption_dropout or None}.items():
            if value is not None and source.captions is None:
                raise DataError(f"data.{key} is {value}, but {origin} has no captions: leave data.{key} out")
        if overfit_steps and source.n is None:
            raise DataError(f"data.overfit_steps is {overfit_steps}, but {origin} has no fixed images: set it to 0")
        self.source, self.batch_size, self.seed, self.sigma_data = source, batch_size, seed, sigma_data
        self.workers, self.flip, self.conditional, self.resident = workers, flip, conditional, resident
        self.overfit_steps, self.name, self.origin = overfit_steps, name, origin
        self.guidance_w, self.caption_dropout = guidance_w, caption_dropout

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.source.shape

    @property
    def num_classes(self) -> int:
        """Number of classes of conditional training; 0 if training is unconditional."""
        return self.source.num_classes if self.conditional else 0

    def setup(self, stage: str) -> None:
        """Warn if σ_data of the configuration is not the measured one, or if images are decoded without workers."""
        measured = self.source.sigma_data
        if self.sigma_data is not None and abs(self.sigma_data - measured) > 0.1 * measured:
            rank_zero_warn(
                f"data.sigma_data is {self.sigma_data}, but {self.origin} measures {measured:.3f}: "
                f"the preconditioning is off; set data.sigma_data={measured:.3f}"
            )
        if not self.workers and not self.source.is_decoded:
            rank_zero_warn(f"the training process decodes the images of {self.origin}: set data.workers to 1 or more")

    def train_dataloader(self) -> DataLoader:
        """Endless micro-batches of this process, starting at the trainer's global step."""
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
        return WorkerLoader(
            self.source.to(device) if resident else self.source,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda" and not resident,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Flip and scale the images on the device; drop captions and draw w of each."""
        images = batch.images
        if self.flip:
            mirrored = (batch.rows.rand("flip") < 0.5).to(images.device, non_blocking=True)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if images.dtype == torch.uint8:
            # CUDA multiplies by the reciprocal of a number, which rounds otherwise than a CPU; it divides by a tensor.
            images = images.float().div_(torch.full((), 127.5, device=images.device)).sub_(1)
        labels = batch.labels if self.conditional else None
        if isinstance(batch.labels, Prompt):
            labels = self._drawn(batch.labels, batch.rows)
        return replace(batch, images=images, labels=labels)

    def _drawn(self, prompt: Prompt, rows: BatchRandom) -> Prompt:
        if self.caption_dropout:
            prompt = prompt.with_dropped(rows.rand("caption") < self.caption_dropout)
        if self.guidance_w is None:
            return prompt
        low, high = self.guidance_w
        w = low + (high - low) * rows.rand("guidance")
        return replace(prompt, guidance=w.to(prompt.text.device, non_blocking=True))

    def _lies_on(self, device: torch.device) -> bool:
        if device.type == "cpu" or self.source.nbytes is None:
            return False
        if self.resident == "auto":
            return device.type == "cuda" and self.source.nbytes <= RESIDENT_BYTES
        return self.resident
