"""`trainer.accumulate_grad_batches=auto`: the smallest number of micro-batches with which a step fits into memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch
from lightning import Callback, LightningModule, Trainer

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.callbacks.forecast import Forecast
from consistency_models.callbacks.memory import PeakMemory, available_bytes, later_bytes, peak_of
from consistency_models.data.batch import Slot
from consistency_models.data.sampler import StepSampler
from consistency_models.errors import ConfigError
from consistency_models.random import BatchRandom

log = logging.getLogger(__name__)

__all__ = ["MicroBatches"]

SHARE = 0.7  # share of the available memory for a step on a CPU; the rest is for work space and fragmentation
FEW = 0.25  # a bound below this share of the memory needs no trial
COPIES = 4  # upper bound of the copies of each layer's output that a step keeps


class MicroBatches(Callback):
    """Chooses the number of micro-batches of a step before the first step: the smallest power of two that fits.

    Random numbers of a step are drawn for the global batch, so that the number changes results only by rounding; with
    dropout, also by other masks, which are drawn for each micro-batch.

    On CUDA, a trial runs one forward and backward pass and doubles the number after each out-of-memory error. On other
    devices running out of memory ends the process. There, the memory of passes of one and two images is measured and
    extrapolated. A small training needs no trial: a bound on the outputs of its layers proves that it fits.

    The trial does not change weights, optimiser, averages and random numbers. All processes use the largest number
    that any of them needs. A resumed run starts with the number of its checkpoint.

    Args:
        forecast: receives the measured time of a step.
        step: first step of the run.

    Raises:
        ConfigError: the smallest micro-batch does not fit.
    """

    state_key = "MicroBatches"

    def __init__(self, forecast: Forecast, step: int = 0) -> None:
        self.forecast, self.step = forecast, step
        self.count = 1

    def on_fit_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Choose the number, before the data loader is created."""
        method.on_fit_start()  # moves the teacher to the device, where it takes memory
        local = trainer.datamodule.batch_size // trainer.world_size
        device, candidates = method.device, list(_powers_of_two(local, self.count, method.rows_together))
        free = available_bytes(device)
        if device.type != "cuda":
            free //= max(1, trainer.world_size // trainer.num_nodes)
        count: int | None = candidates[0]
        if tried := _bound(trainer, method, local // candidates[0]) > FEW * free:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                try_out = self._try if device.type == "cuda" else self._extrapolate
                count = try_out(trainer, method, candidates, free)
            self._clean_up(method)
        if trainer.world_size > 1:  # all processes, because their free memory differs, and so may `tried`
            largest = trainer.strategy.reduce(torch.tensor(float(count or 2**30), device=device), reduce_op="max")
            count = None if largest == 2**30 else int(largest)
        if count is None:
            smallest = local // candidates[-1]
            reason = f"{smallest} images at a time need more memory than the {free / 2**30:.1f} GiB that are free"
            fix = "choose a smaller network, or a batch size that is divisible by a larger power of two"
            allowed = "a batch of which one micro-batch fits into the memory"
            raise ConfigError("data.batch_size", trainer.datamodule.batch_size, allowed, fix, reason=reason)
        if tried:
            log.info(
                "micro-batches of a step: %d of %d images each (%.1f GiB of memory are free on %s)",
                *(count, local // count, free / 2**30, device),
            )
        self.count = trainer.accumulate_grad_batches = count

    def _try(self, trainer: Trainer, method: LightningModule, candidates: list[int], free: int) -> int | None:
        """Return the first number whose micro-batch runs without an out-of-memory error, or None."""
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
        """Return the first number that fits, or None, extrapolated from passes of one and two images (or groups)."""
        local, unit, traces = trainer.datamodule.batch_size // trainer.world_size, method.rows_together, []
        for images in (unit, unit, 2 * unit):  # the first pass also allocates buffers that stay allocated
            with PeakMemory() as memory:
                started = time.perf_counter()
                self._pass(trainer, method, min(images, local))
                seconds = time.perf_counter() - started
            traces.append(memory.trace)
            self._clean_up(method)
        self.forecast.warn_if_long(
            seconds / (2 * unit) * local,
            *(method.total_steps - self.step, method.device),
            margin=4,  # a pass of two images takes more time per image than a larger pass
        )
        limit = SHARE * free - _later_bytes(trainer, method)
        return next((count for count in candidates if peak_of(local // count // unit, *traces[1:]) <= limit), None)

    def _pass(self, trainer: Trainer, method: LightningModule, images: int) -> None:
        """Run forward and backward on the first `images` rows of the batch."""
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
        """Return the number, so that a resumed run rounds as before."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start with the number of the checkpoint."""
        self.count = state["count"]


def _powers_of_two(local: int, first: int, unit: int) -> Iterator[int]:
    """Yield powers of two, times `first` if that divides `local`, that divide `local` into multiples of `unit`."""
    count = first if local % (first * unit) == 0 else 1
    yield count
    while local % (2 * count * unit) == 0:
        count *= 2
        yield count


def _later_bytes(trainer: Trainer, method: LightningModule) -> int:
    return later_bytes(method, sum(len(c.profile.names) for c in trainer.callbacks if isinstance(c, WeightEMA)))


def _bound(trainer: Trainer, method: LightningModule, images: int) -> float:
    """Upper bound of the bytes of a step of a convolutional network, from each layer's output at full size.

    Infinite for a distance that is a network.
    """
    if hasattr(method.distance, "prepare"):
        return float("inf")
    networks = [method.model, *filter(None, method._teacher)]
    channels = sum(p.shape[0] for network in networks for p in network.parameters() if p.ndim > 1)
    pixels = trainer.datamodule.shape[-1] * trainer.datamodule.shape[-2]
    weights = sum(p.nbytes for network in networks for p in network.parameters())
    return 4.0 * COPIES * channels * pixels * images + 2 * weights + _later_bytes(trainer, method)
