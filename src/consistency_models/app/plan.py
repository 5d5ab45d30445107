"""`plan=true`: an estimate of the cost of a training, without training, without a GPU and with little memory.

A step of the method runs with fake tensors, which have shapes and no values. Floating-point operations are counted by
torch's formulas, and memory by the bytes of the tensors that are alive at the same time.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from consistency_models.app.build import build_method, total_steps
from consistency_models.app.pipelines import with_pipeline
from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.callbacks.memory import PeakMemory, later_bytes, peak_of
from consistency_models.data.batch import Batch
from consistency_models.losses.distances import LPIPS
from consistency_models.methods.base import Method
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.random import BatchRandom
from consistency_models.storage.loading import instantiate

__all__ = ["DEVICES", "OWN_SHARE", "SHARE", "Cost", "cost", "cost_of", "plan"]

GIB = 2**30
SHARE = {"32-true": 0.13, "bf16-mixed": 0.21, "16-mixed": 0.19}
"""Fraction of the bfloat16 peak of a data sheet that a step of DDPM++ reached on an H200, by `trainer.precision`."""
OWN_SHARE = 0.35
"""Assumed fraction of the peak of this machine's float32 matrix products."""
DEVICES = {
    "H100 SXM": (989e12, 80),
    "A100 80 GB": (312e12, 80),
    "RTX 4090": (165e12, 24),
    "L4": (121e12, 24),
}
"""Dense bfloat16 operations per second and GiB of memory, from the vendor's data sheets."""


class Cost:
    """The cost of one step.

    Attributes:
        parameters: number of trained parameters.
        flops: floating-point operations of a step for each image.
        fixed_bytes: bytes of weights, target network, teacher, optimiser and averages.
        unit: images that a micro-batch must not divide.
        traces: bytes alive after each operation of a pass of one unit and of two, including gradients.
    """

    def __init__(self, parameters: int, flops: float, fixed_bytes: int, unit: int, traces: list[list[int]]) -> None:
        self.parameters, self.flops, self.fixed_bytes = parameters, flops, fixed_bytes
        self.unit, self.traces = unit, traces

    def peak_bytes(self, images: int) -> int:
        """Return the memory of a step with micro-batches of `images` images."""
        return self.fixed_bytes + peak_of(-(-images // self.unit), *self.traces)

    def largest(self, memory: float, batch_size: int) -> int:
        """Return the largest micro-batch, batch_size/2^k, that fits into the memory; 0 if none fits."""
        images = batch_size
        while self.peak_bytes(images) > memory:
            if images % (2 * self.unit):
                return 0
            images //= 2
        return images


def plan(config: dict[str, Any]) -> str:
    """Return a table of the costs of a training from its resolved configuration."""
    config = with_pipeline(config)
    step_cost, batch_size = cost(config), config["data"]["batch_size"]
    steps = total_steps(config, ImagesSeen(batch_size))
    step_flops = step_cost.flops * batch_size
    lines = [
        f"{config['name']}: {steps:,} steps of {batch_size:,} images of "
        f"{config['data']['channels']}x{config['data']['image_size']}x{config['data']['image_size']}",
        f"trained parameters               {step_cost.parameters:,}",
        f"operations of a step             {step_flops:.3g} FLOP, {step_cost.flops:.3g} an image",
        f"operations of the training       {step_flops * steps:.3g} FLOP",
        f"memory without activations       {step_cost.fixed_bytes / GIB:.2f} GiB "
        "(weights, teacher, optimiser, averages)",
        "",
        "micro-batch   accumulate_grad_batches   peak memory of a step, float32",
    ]
    images = batch_size
    while True:
        lines.append(f"{images:>11}   {batch_size // images:>23}   {step_cost.peak_bytes(images) / GIB:.2f} GiB")
        if images % (2 * step_cost.unit):
            break
        images //= 2
    precision = config["trainer"]["precision"]
    share = SHARE[precision]
    lines += ["", f"device           largest micro-batch   hours, at {share:.0%} of the peak"]
    for name, (peak, gib) in (DEVICES | {"this machine": (_matmul_flops(), None)}).items():
        hours = step_flops * steps / peak / (OWN_SHARE if gib is None else share) / 3600
        fits = "" if gib is None else step_cost.largest(gib * GIB, batch_size) or "none"
        lines.append(f"{name:<16} {fits!s:>19}   {hours:.3g}")
    lines += [
        "",
        f"GPUs: bfloat16 peaks of the data sheets, and the share that DDPM++ reached on an H200 with {precision}.",
        "bf16-mixed and 16-mixed halve most activations.",
        f"This machine: {OWN_SHARE:.0%} of float32 matrix products, measured now.",
    ]
    return "\n".join(lines)


def cost(config: dict[str, Any]) -> Cost:
    """Compute the cost of a step of this configuration."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta") if config["network"].get("lora") else mode:  # peft moves adapters, fake tensors cannot
        network = instantiate(config["network"])
    model = Preconditioned(network, instantiate(config["preconditioning"]))
    with warnings.catch_warnings(action="ignore"):  # torch warns about copies of fake tensors (target networks)
        changed = {"init": {"_target_": None}, "compile": False, "channels_last": False}
        method = build_method(config | changed, model=model).train()
    if isinstance(method.distance, LPIPS):
        method.distance.prepare(load=False)  # a plan needs no download
    return cost_of(method, config)


def cost_of(method: Method, config: dict[str, Any]) -> Cost:
    """Compute the cost of a step of this method, whose networks may have fake tensors."""
    modules = [method, *filter(None, method._teacher)]
    unit = method.rows_together
    with FlopCounterMode(display=False) as flops:
        _step(method, config, 2 * unit)
    traces = []
    for images in (unit, 2 * unit):
        method.zero_grad(set_to_none=True)
        with PeakMemory() as memory:
            _step(method, config, images)
        traces.append(memory.trace)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    averages = len(instantiate(config["ema"]).names) if (config.get("callbacks") or {}).get("ema") else 0
    tensors = {id(p): p for module in modules for p in (*module.parameters(), *module.buffers())}  # shared ones once
    weights = sum(tensor.nbytes for tensor in tensors.values())
    fixed = weights + later_bytes(method, averages)
    return Cost(sum(p.numel() for p in trained), flops.get_total_flops() / (2 * unit), fixed, unit, traces)


def _step(method: Method, config: dict[str, Any], images: int) -> None:
    """Run forward and backward of a micro-batch in the middle of training, with fake tensors."""
    data, total = config["data"], max(config["data"]["batch_size"], images)
    x = torch.zeros(images, data["channels"], data["image_size"], data["image_size"])
    labels: Any = torch.zeros(images, dtype=torch.int64) if data["network_classes"] else None
    if hasattr(method.model.network, "blank"):
        labels = method.model.network.blank(images)
    rows = BatchRandom(config["seed"], method.total_steps // 2, total, slice(0, images))
    method.training_step(Batch(x, labels, rows), 0).backward()


def _matmul_flops() -> float:
    """Measure the float32 operations per second of matrix products on this machine: the best of three."""
    n, seconds = 1024, []
    a = torch.ones(n, n)
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)
