"""Generation of images for the tasks, in one or several processes, with bit-identical results.

The network runs on blocks of a fixed size, which start at multiples of this size, because its rounding depends on the
batch size. Processes share blocks, so neither the number of processes nor `batch_size` changes an image.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from consistency_models.app.acceleration import compile_for
from consistency_models.app.checks.strangers import check_links
from consistency_models.conditions import Prompt
from consistency_models.devices import cpu_threads
from consistency_models.errors import ConfigError
from consistency_models.sampling.batches import blocks
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import checkpoint_file, load

log = logging.getLogger(__name__)

__all__ = ["Producer", "block_size", "index_sets", "progress_bar", "results_folder", "samplers_of"]


def block_size(shape: tuple[int, ...]) -> int:
    """Return the images of a network call: 256 of up to 16x16 values, 64 of 32x32, 16 of 64x64, 1 of 256x256."""
    return max(1, min(256, 2**16 // (shape[-2] * shape[-1])))


def samplers_of(config: dict[str, Any], generator: Generator) -> list[Any]:
    """Return a sampler for each step count of `steps`, or one sampler for `sigmas`.

    Raises:
        ConfigError: the model does not support these steps or levels.
    """
    sigmas = config["sigmas"]
    counts = [len(sigmas)] if sigmas else config["steps"] or generator.config["evaluation"]["steps"]
    try:
        samplers = [] if sigmas else [generator.make_sampler(steps=count) for count in counts]
    except ValueError as error:
        fix = "sampler=consistency takes any number, by re-noising"
        raise ConfigError("steps", counts, "step counts of the sampler", fix, reason=str(error)) from error
    samplers = samplers or [_at_levels(generator, sigmas)]
    for sampler in samplers:
        if min(sampler.sigmas) < generator.lowest:
            allowed = f"levels from {generator.lowest:g} up"
            reason = "the model was not trained at other levels (model=tcm)"
            raise ConfigError("sigmas", list(sampler.sigmas), allowed, reason=reason)
    return samplers


def _at_levels(generator: Generator, sigmas: list[float]) -> Any:
    fix = "add sampler=consistency"
    try:
        own = generator.make_sampler(steps=len(sigmas))
        if hasattr(own, "with_levels"):
            fix = ""
            return own.with_levels(sigmas)
        allowed = f"null with the sampler {type(own).__name__}"
        reason = "only the samplers of consistency models and flow maps take arbitrary levels"
    except ValueError as error:
        allowed, reason = "levels that the sampler takes", str(error)
    raise ConfigError("sigmas", sigmas, allowed, fix, reason=reason)


def index_sets(config: dict[str, Any], n: int) -> list[range]:
    """Return the indices of each sample set, from `seeds`, or from `n` (default: the argument) and `repeats`."""
    if config["seeds"]:
        ranges = config["seeds"] if isinstance(config["seeds"], list) else [config["seeds"]]
        ends = [map(int, text.split("-")) for text in ranges]
        return [range(first, last + 1) for first, last in ends]
    n = config["n"] or n
    return [range(i * n, (i + 1) * n) for i in range(config["repeats"])]


def results_folder(run: str) -> Path:
    """Return evaluation/ of the run folder or exported folder, or next to another file; created if missing.

    Raises:
        ConfigError: the folder has a link that leads to another folder, or cannot be written.
    """
    file = checkpoint_file(run)
    folder = file.parent / file.stem
    if file.parent.name == "checkpoints":
        folder = file.parent.parent
    elif Path(run).expanduser().is_dir():
        folder = file if file.is_dir() else file.parent
    check_links("run", folder, ("evaluation", "wandb"))
    folder /= "evaluation"
    with suppress(PermissionError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        reason, fix = f"results are written to {folder}, which does not permit it", "copy it to another folder"
        raise ConfigError("run", run, "a run in a folder that can be written", fix, reason=reason)
    return folder


class Producer:
    """Generate images on `devices` devices: in this process, or in one process for each device.

        with Producer(config, generator, sampler.nfe * len(wanted)) as producer:
            for indices, images in producer.batches(sampler, wanted): …

    Args:
        config: eval.py's, with its `device` resolved.
        generator: loaded from its `run`, with its `sampler`.
        calls: network calls of the task, each of one image, for `compile=auto`.

    Raises:
        ConfigError: there are too few GPUs.
    """

    def __init__(self, config: dict[str, Any], generator: Generator, calls: int) -> None:
        self.generator, self.seed, self.block = generator, config["seed"], block_size(generator.shape)
        self.unit = self.block * max(1, config["batch_size"] // self.block)
        self.devices, self.executor = _devices(config["device"], config["devices"]), None
        self.run, self.precision = config["run"], config["precision"]
        self.compile = compile_for(calls, config, generator)
        if self.compile:
            log.info("network calls of %d images are compiled, calls of fewer run eagerly", self.block)

    def __enter__(self) -> Producer:
        if self.compile and len(self.devices) == 1:
            self.generator.compile(self.block)
        if len(self.devices) > 1:
            context = get_context("spawn")
            devices = context.Queue()
            for device in self.devices:
                devices.put(device)
            threads = cpu_threads(len(self.devices))
            arguments = (self.run, self.generator.weights, self.precision, self.generator.prompts, devices, threads)
            arguments = (*arguments, self.block if self.compile else None, context.Barrier(len(self.devices)))
            self.executor = ProcessPoolExecutor(len(self.devices), context, _start_worker, arguments)
            list(self._wait([self.executor.submit(_wait_until_started) for _ in self.devices]))
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    def batches(
        self, sampler: Any, wanted: range, classes: list[int] | None = None, skip: Iterable[int] = ()
    ) -> Iterator[tuple[range, Tensor]]:
        """Yield indices and images (n, C, H, W), at most `batch_size` images at a time (or a block), in any order.

        Args:
            sampler: the sampler.
            wanted: consecutive indices.
            classes: image k has class number k mod len(classes) of this list; None: as in `Generator.labels`.
            skip: indices that are not needed; a batch is skipped if all its indices are in `skip`.
        """
        skip, parts = set(skip), blocks(wanted, self.unit)
        jobs = [(sampler, self.seed, part, classes, self.block) for part in parts if not skip.issuperset(part)]
        if self.executor is None:
            parts = [part for job in jobs for part in blocks(job[2], self.block)]
            labels_of = None if classes is None else lambda indices: _classes(indices, classes)
            yield from zip(parts, self.generator.batches(parts, sampler, self.seed, labels_of))
            return
        futures = {self.executor.submit(_call_in_worker, _images, *job): job[2] for job in jobs}
        for future, images in self._wait(futures):
            yield futures.pop(future), torch.from_numpy(images)

    def map(self, function: Callable[..., Any], jobs: Iterable[Sequence[Any]]) -> Iterator[Any]:
        """Yield `function(generator, *job)` of each job, in order, from the further processes.

        Args:
            function: a function of a module. Its first argument is the generator of the process.
            jobs: the other arguments of each call.
        """
        for future in [self.executor.submit(_call_in_worker, function, *job) for job in jobs]:
            (_, result), *_ = self._wait([future])
            yield result

    def _wait(self, futures: Iterable[Future]) -> Iterator[tuple[Future, Any]]:
        """Yield futures with their results in the order of completion."""
        try:
            yield from ((future, future.result()) for future in as_completed(futures))
        except BrokenProcessPool as error:
            reason = "the system killed one of the processes, perhaps because of too little memory"
            fewer = "a number of processes that fits into the memory"
            raise ConfigError("devices", len(self.devices), fewer, reason=reason) from error


def _images(
    generator: Generator, sampler: Any, seed: int, indices: range, classes: list[int] | None, block: int
) -> np.ndarray:
    """Generate the images of these indices."""
    labels = None if classes is None else _classes(torch.arange(indices.start, indices.stop), classes)
    return generator.sample(
        len(indices), seed=seed, labels=labels, batch_size=block, first=indices.start, sampler=sampler
    ).numpy()


def _classes(indices: Tensor, classes: list[int]) -> Tensor:
    return torch.tensor(classes)[indices % len(classes)]


_generator: Generator | None = None


def _start_worker(
    run: str,
    weights: str,
    precision: str,
    prompts: Prompt | None,
    devices: Any,
    threads: int,
    compiled: int | None,
    barrier: Any,
) -> None:
    """Initialise a further process. The barrier keeps the start of the processes out of the timings."""
    global _generator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first process ends the others
    torch.set_num_threads(threads)
    device = devices.get()
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # of the feature extractor, whose device is "cuda"
    _generator = load(run, weights, device, precision=precision)
    _generator.prompts = prompts
    if compiled is not None:
        _generator.compile(compiled)
    barrier.wait()


def _wait_until_started() -> None:
    pass


def _call_in_worker(function: Callable[..., Any], *job: Any) -> Any:
    return function(_generator, *job)


def _devices(device: str, count: int) -> list[str]:
    if count == 1 or device != "cuda":
        return [device] * count
    available = torch.cuda.device_count()
    if count > available:
        raise ConfigError("devices", count, f"1 to {available}", "or device=cpu", reason=f"there are {available} GPUs")
    return [f"cuda:{i}" for i in range(count)]


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} images/s")


def progress_bar() -> Progress:
    """Return a progress bar with the number of images, their rate and the remaining time."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn()
    )
