"""Speed of networks, gain of each lever, and distance from a floor of convolutions and matrix products.

    python benchmarks/network.py                                           # small network, this machine, a minute
    python benchmarks/network.py --networks ddpmpp --batch 8 --threads 2   # DDPM++ at CIFAR-10 size
    python benchmarks/network.py --networks ddpmpp ncsnpp --batch 128 --levers channels_last bf16 sdpa compile all

Each lever is compared with the same network without levers (float32, NCHW, attention by elementary operations, eager)
in the same run. Each round runs all levers in turn, and the median over the rounds is shown. The floor is the time of
the network's convolutions and matrix products alone, on contiguous tensors of the same sizes in the same precision.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from contextlib import ExitStack

import measuring
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from consistency_models.callbacks.memory import peak_bytes

LEVERS = {
    "none": set(),
    "channels_last": {"channels_last"},
    "bf16": {"bf16"},
    "sdpa": {"sdpa"},
    "compile": {"compile"},
    "all": {"channels_last", "bf16", "sdpa", "compile"},
    "bf16+sdpa": {"bf16", "sdpa"},
}


def build(name: str, size: int, classes: int, device: str) -> nn.Module:
    """Build the network of conf/network/NAME.yaml, for 3-channel images."""
    data = [f"+data.image_size={size}", "+data.channels=3", f"+data.network_classes={classes}"]
    with initialize_config_dir(str(measuring.CONF), version_base="1.3"):
        config = compose(f"network/{name}", overrides=data)
    return instantiate(config.network).to(device)


class Products(TorchFunctionMode):
    """Collects each convolution and matrix product of a forward pass: function, shapes, arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, list[tuple[torch.Size, bool]], dict]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Record a product; torch calls this method for every function while the mode is active."""
        kwargs = kwargs or {}
        if function in (torch.conv2d, torch.conv_transpose2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__):
            tensors = [(a.shape, a.requires_grad) for a in args[:2]]
            # Without the bias, which adds no product.
            options = {key: value for key, value in kwargs.items() if key != "bias"}
            if function in (torch.conv2d, torch.conv_transpose2d):
                names = ("stride", "padding", "dilation", "groups")
                options |= dict(zip(names, args[3:]))
            self.calls.append((function, tensors, options))
        if function is F.scaled_dot_product_attention:
            q, k, v = args
            self.calls.append((torch.matmul, [(q.shape, True), (k.transpose(2, 3).shape, True)], {}))
            self.calls.append((torch.matmul, [(q.shape[:3] + k.shape[2:3], True), (v.shape, True)], {}))
        return function(*args, **kwargs)


def floor(network: nn.Module, inputs: tuple, dtype: torch.dtype, backward: bool) -> Callable[[], None]:
    """Return a function that runs only the network's products, forward or forward and backward."""
    with Products() as products:
        network(*inputs)
    device, calls = inputs[0].device, []
    for function, tensors, options in products.calls:
        leaves = [torch.randn(s, device=device, dtype=dtype, requires_grad=grad and backward) for s, grad in tensors]
        calls.append((function, leaves, options))
    with torch.no_grad():
        gradients = [torch.randn_like(function(*leaves, **options)) for function, leaves, options in calls]

    def run() -> None:
        outputs = [function(*leaves, **options) for function, leaves, options in calls]
        if backward:
            leaves = [leaf for _, leaves, _ in calls for leaf in leaves if leaf.requires_grad]
            torch.autograd.grad(outputs, leaves, gradients)

    return run


def variant(network: nn.Module, inputs: tuple, levers: set[str], backward: bool) -> Callable[[], None]:
    """Return a function that runs the network with these levers, forward or forward and backward."""
    network = copy.deepcopy(network)
    x, *rest = inputs
    if "channels_last" in levers:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if "compile" in levers:
        network.compile()

    def run() -> None:
        with ExitStack() as stack:
            if "sdpa" not in levers:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.set_grad_enabled(backward))
            with torch.autocast(x.device.type, torch.bfloat16, enabled="bf16" in levers):
                out = network(x, *rest)
            if backward:
                network.zero_grad()
                out.float().square().mean().backward()

    return run


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    """Return one row for each pass, lever and floor."""
    torch.manual_seed(0)
    network = build(name, args.image_size, args.classes, args.device).train()
    x = torch.randn(args.batch, 3, args.image_size, args.image_size, device=args.device)
    labels = (
        torch.eye(args.classes, device=args.device)[torch.arange(args.batch) % args.classes] if args.classes else None
    )
    inputs = (x, torch.linspace(-1.5, 1.0, args.batch, device=args.device), labels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    rows = []
    for backward in (False, True):
        runs = {lever: variant(network, inputs, LEVERS[lever], backward) for lever in ["none", *args.levers]}
        runs |= {f"floor {key}": floor(network, inputs, dtype, backward) for key, dtype in measuring.DTYPES.items()}
        memory = {}
        for key, run in runs.items():
            measuring.reset_memory(args.device)
            run(), run()  # warm-up and compilation
            memory[key] = peak_bytes(args.device)
        timed = {key: lambda run=run: measuring.seconds(run, args.device) for key, run in runs.items()}
        times = measuring.interleaved(timed, args.rounds)
        medians = {key: measuring.median(values) for key, values in times.items()}
        for key, median in medians.items():
            low = "bf16" in key or key == "all"
            rows.append(
                {
                    "network": name,
                    "parameters": sum(p.numel() for p in network.parameters()),
                    "batch": args.batch,
                    "pass": "forward+backward" if backward else "forward",
                    "lever": key,
                    "seconds": median,
                    "spread": [min(times[key]), max(times[key])],
                    "images_per_second": args.batch / median,
                    "speed_up": medians["none"] / median,
                    "of_floor": median / medians["floor bf16" if low else "floor float32"],
                    "teraflop_per_second": counter.get_total_flops() * (3 if backward else 1) / median / 1e12,
                    "peak_memory_bytes": memory[key],
                }
            )
    return rows


COLUMNS = {
    "network": "{network}",
    "pass": "{pass}",
    "lever": "{lever}",
    "images/s": "{images_per_second:.4g}",
    "speed-up": "{speed_up:.2f}",
    "time / floor": "{of_floor:.2f}",
    "TFLOP/s": "{teraflop_per_second:.3g}",
}


def main(arguments: list[str] | None = None) -> dict:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["small"], help="names of conf/network")
    parser.add_argument("--levers", nargs="*", default=["channels_last", "bf16", "sdpa", "bf16+sdpa"], choices=LEVERS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=0, help="0: unconditional")
    args = parser.parse_args(arguments)
    results = measuring.machine(args)
    products = {name: measuring.peak(args.device, dtype) / 1e12 for name, dtype in measuring.DTYPES.items()}
    results["matmul_teraflop_per_second"] = products
    results["rows"] = [row for name in args.networks for row in measure(name, args)]
    print("matrix products: " + ", ".join(f"{name} {value:.3g} TFLOP/s" for name, value in products.items()))
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
