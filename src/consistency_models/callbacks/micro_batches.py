"""`trainer.accumulate_grad_batches=auto`: as many micro-batches as a step needs to fit into the memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch
from lightning import Callback, LightningModule, Trainer

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.callbacks.forecast import Forecast
from consistency_models.callbacks.memory import PeakMemory, available_bytes, peak_of
from consistency_models.data.batch import Slot
from consistency_models.data.sampler import StepSampler
from consistency_models.errors import ConfigError
from consistency_models.random import BatchRandom

log = logging.getLogger(__name__)

__all__ = ["MicroBatches"]

SHARE = 0.7  # of the available memory that a step may take on a CPU: the rest is for work space and fragmentation
FEW = 0.25  # a bound below this share needs no trial
COPIES = 4  # of each layer's output that a step keeps, at most, in the bound


class MicroBatches(Callback):
    """Chooses the number of micro-batches of a step before the first step: the smallest power of two that fits.

    All numbers of a step are drawn for the global batch, so the number changes no result beyond rounding.

    CUDA: one forward and backward pass is tried; when it runs out of memory, the number is doubled. Elsewhere running
    out of memory ends the process, so the passes of one and of two images are measured and extrapolated. A small
    training pays for neither: a bound on its layers' outputs says that it fits.

    The trial leaves weights, optimiser, averages and random numbers as they are. All processes take the largest number
    that one of them needs. A run that goes on begins with the number of its checkpoint.

    Args:
        forecast: is told how long a step takes.
        step: the step that the run begins with.

    Raises:
        ConfigError: not even the smallest micro-batch fits.
    """

    state_key = "MicroBatches"

    def __init__(self, forecast: Forecast, step: int = 0) -> None:
        self.forecast, self.step = forecast, step
        self.count = 1

    def on_fit_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Choose, before the data loader is made."""
        method.on_fit_start()  # the teacher's memory counts, too
        local = trainer.datamodule.batch_size // trainer.world_size
        device, candidates = method.device, list(_powers_of_two(local, self.count))
        free = available_bytes(device)
        if device.type != "cuda":
            free //= max(1, trainer.world_size // trainer.num_nodes)
        if _bound(trainer, method, local // candidates[0]) > FEW * free:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                try_out = self._try if device.type == "cuda" else self._extrapolate
                count = try_out(trainer, method, candidates, free)
            self._clean_up(method)
            if trainer.world_size > 1:
                count = int(
                    trainer.strategy.reduce(torch.tensor(float(count or 2**30), device=device), reduce_op="max")
                )
                count = None if count == 2**30 else count
            if count is None:
                smallest = local // candidates[-1]
                reason = f"{smallest} images at a time need more memory than the {free / 2**30:.1f} GiB that are free"
                fix = "choose a smaller network, or a batch size with a larger power of two in it"
                allowed = "a batch of which one micro-batch fits into the memory"
                raise ConfigError("data.batch_size", trainer.datamodule.batch_size, allowed, fix, reason=reason)
            log.info(
                "micro-batches of a step: %d of %d images each (%.1f GiB of memory are free on %s)",
                *(count, local // count, free / 2**30, device),
            )
            self.count = count
        trainer.accumulate_grad_batches = self.count

    def _try(self, trainer: Trainer, method: LightningModule, candidates: list[int], free: int) -> int | None:
        """The first number whose micro-batch passes."""
        for count in candidates:
            reserved = None
            try:
                reserved = torch.empty(_later_bytes(trainer, method), dtype=torch.uint8, device=method.device)
                self._pass(trainer, method, trainer.datamodule.batch_size // trainer.world_size // count)
                return count
            except torch.OutOfMemoryError:
                continue
            finally:
                del reserved
                self._clean_up(method)
        return None

    def _extrapolate(self, trainer: Trainer, method: LightningModule, candidates: list[int], free: int) -> int | None:
        """The first number whose micro-batch needs no more than there is, by the passes of one and two images."""
        local, traces = trainer.datamodule.batch_size // trainer.world_size, []
        for images in (1, 1, 2):  # the first pass also makes what a network keeps
            with PeakMemory() as memory:
                started = time.perf_counter()
                self._pass(trainer, method, min(images, local))
                seconds = time.perf_counter() - started
            traces.append(memory.trace)
            self._clean_up(method)
        self.forecast.tell(
            seconds / 2 * local,
            *(method.total_steps - self.step, method.device),
            margin=4,  # two images at a time are slower than many
        )
        limit = SHARE * free - _later_bytes(trainer, method)
        return next((count for count in candidates if peak_of(local // count, *traces[1:]) <= limit), None)

    def _pass(self, trainer: Trainer, method: LightningModule, images: int) -> None:
        """Forward and backward of the first so many rows of the batch."""
        data = trainer.datamodule
        sampler = StepSampler(data.source.n, data.batch_size, data.seed, period=data.overfit_steps)
        rows = BatchRandom(data.seed, self.step, data.batch_size, slice(0, images))
        batch = data.source[Slot(rows, sampler.indices(rows))]
        batch = data.on_after_batch_transfer(trainer.strategy.batch_to_device(batch, method.device), 0)
        was_training = method.training
        method.train()
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.train_step_context():
            loss = method.training_step(batch, 0)
        loss.backward()
        method.train(was_training)

    def _clean_up(self, method: LightningModule) -> None:
        method.zero_grad(set_to_none=True)
        method.monitored.clear()
        method.losses_by_level.clear()
        method.teacher_calls = 0
        if method.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(method.device)

    def state_dict(self) -> dict[str, int]:
        """The number, so that a run that goes on rounds as it did."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin with the checkpoint's number."""
        self.count = state["count"]


def _powers_of_two(local: int, first: int) -> Iterator[int]:
    """Numbers of micro-batches into which `local` images can be divided, from `first` on if that divides them."""
    count = first if local % first == 0 else 1
    while local % count == 0:
        yield count
        count *= 2


def _later_bytes(trainer: Trainer, method: LightningModule) -> int:
    """What comes after the first pass: two numbers a weight in the optimiser, and the averages."""
    averages = sum(len(c.profile.names) for c in trainer.callbacks if isinstance(c, WeightEMA))
    return (2 + averages) * sum(p.nbytes for p in method.parameters() if p.requires_grad)


def _bound(trainer: Trainer, method: LightningModule, images: int) -> float:
    """Bytes that a step of a network of convolutions surely does not exceed: each layer's output at full size.

    Infinite for a distance that is a network itself.
    """
    if hasattr(method.distance, "prepare"):
        return float("inf")
    networks = [method.model, *filter(None, method._teacher)]
    channels = sum(p.shape[0] for network in networks for p in network.parameters() if p.ndim > 1)
    pixels = trainer.datamodule.shape[-1] * trainer.datamodule.shape[-2]
    weights = sum(p.nbytes for network in networks for p in network.parameters())
    return 4.0 * COPIES * channels * pixels * images + 2 * weights + _later_bytes(trainer, method)
