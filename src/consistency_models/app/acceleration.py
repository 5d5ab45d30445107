"""The choices of `channels_last=auto` and `compile=auto`, from the network, the device and the number of network calls,
and a warning where half precision is too coarse for the levels.

No choice uses a measured time, so a run that is killed and started again makes the same choice. The choices are stored
in config.yaml and in checkpoints. A resumed run keeps those of its checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from consistency_models import conditions
from consistency_models.app.checks.targets import fact
from consistency_models.errors import ConfigError
from consistency_models.networks.layout import HALF, is_convolutional, prefers_channels_last
from consistency_models.random import BatchRandom

if TYPE_CHECKING:  # evaluation runs without Lightning
    from consistency_models.methods.base import Method
    from consistency_models.sampling.generator import Generator

log = logging.getLogger(__name__)

__all__ = ["Choice", "channels_last", "compilation", "compile_for", "warn_of_rounding", "with_acceleration"]

PASSES = 4.0  # cost of a step in forward passes of the student: forward, backward (2), target
MARGIN = 2.0  # the saved time is at least this multiple of the compilation


class Choice(NamedTuple):
    """The value of a setting and its reason."""

    value: bool
    reason: str


class Gain(NamedTuple):
    """What compilation costs and saves on a device, see docs/performance.md."""

    step: float  # seconds of compiling a step, for each weight tensor
    call: float | None  # the same for a call of the sampler; None: not measured
    saved: float  # share of a pass that compilation saves, at least
    flops: float  # operations a second of a fast core or device; a slower one saves more
    largest: int  # weight tensors of a network whose compilation was measured


GAINS = {"cpu": Gain(1.0, 0.5, 0.05, 2e11, 200), "cuda": Gain(0.5, None, 0.3, 2e14, 450)}


def with_acceleration(
    config: dict[str, Any], model: nn.Module, steps: int, resumed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the configuration with true or false in place of auto, and log the choices.

    Args:
        config: the resolved configuration.
        model: the preconditioned network, on the CPU.
        steps: optimiser steps of the whole training.
        resumed: the configuration of the resumed checkpoint.

    Raises:
        ConfigError: compile=true, and the machine lacks what compilation needs.
    """
    chosen = {}
    for key, choose in (("channels_last", channels_last), ("compile", compilation)):
        if config[key] != "auto":
            if key == "compile":
                _check_compiler(config[key], _device_type(config))
            continue
        if resumed is not None and isinstance(resumed.get(key), bool) and config["trainer"]["strategy"] != "fsdp":
            choice = Choice(resumed[key], "as in the resumed run")
            if key == "compile" and choice.value and (reason := _hindrance(model, _device_type(config), "step")):
                choice = Choice(False, f"{reason}; the resumed run was compiled and differs by rounding")
        else:
            choice = choose(config, model, steps)
        chosen[key] = choice.value
        log.info("%s=auto chooses %s: %s", key, str(choice.value).lower(), choice.reason)
    return config | chosen


def channels_last(config: dict[str, Any], model: Any, steps: int) -> Choice:
    """Choose the memory layout of the networks."""
    if config["trainer"]["strategy"] == "fsdp":
        return Choice(False, "sharded weights have the default layout")
    device = _device_type(config)
    if prefers_channels_last(model.network, device):
        return Choice(True, f"convolutions on {device}")
    if not is_convolutional(model.network):
        return Choice(False, "the network has few convolutions")
    return Choice(False, f"no gain is known on {device}")


def compilation(config: dict[str, Any], model: Any, steps: int) -> Choice:
    """Choose whether the networks of a training are compiled, see `_earned_back`."""
    trainer, device, data = config["trainer"], _device_type(config), config["data"]
    devices = torch.cuda.device_count() if trainer["devices"] == "auto" and device == "cuda" else trainer["devices"]
    if trainer["strategy"] == "fsdp":
        return Choice(False, "sharded networks are not compiled")
    if trainer["strategy"] != "auto" or trainer["num_nodes"] > 1 or devices not in ("auto", 1):
        return _not("the gain for several processes has not been measured")
    if fact(config["model"], "varying_batches"):
        return _not("the teacher is called on batches of varying sizes")
    if device == "cuda" and trainer["precision"] not in HALF:
        return _not(f"the gain of precision {trainer['precision']} on cuda has not been measured")
    if device == "cuda" and any(
        getattr(module, name, 0) for module in model.modules() for name in ("p", "dropout", "label_dropout")
    ):
        return _not("the dropout masks of a compiled network have not been compared on cuda")
    return _earned_back(model, data, device, PASSES * steps * data["batch_size"], "step")


def compile_for(calls: int, config: dict[str, Any], generator: Generator) -> bool:
    """Return `compile` of eval.py, and log the choice of auto, see `_earned_back`.

    Args:
        calls: network calls of the task, each of one image.
        config: the configuration of eval.py, with its `device` resolved.
        generator: the loaded generator.

    Raises:
        ConfigError: compile=true, and the machine lacks what compilation needs.
    """
    device = config["device"].partition(":")[0]
    if config["compile"] != "auto":
        _check_compiler(config["compile"], device)
        return config["compile"]
    if config["devices"] > 1:
        choice = _not("the gain for several processes has not been measured")
    else:
        choice = _earned_back(generator.model, generator.config["data"], device, calls, "call")
    log.info("compile=auto chooses %s: %s", str(choice.value).lower(), choice.reason)
    return choice.value


def _earned_back(model: Any, data: dict[str, Any], device: str, passes: float, compiled: str) -> Choice:
    """Choose whether a network is compiled: only if the estimated saving is a multiple of the compilation.

        saving      = saved · passes · operations of a forward pass / (flops · threads)
        compilation = seconds · weight tensors

    The estimate is for networks as those that were measured. For other networks the choice is false.

    Args:
        model: the preconditioned network.
        data: channels and size of its images.
        device: its type.
        passes: forward passes, each of one image.
        compiled: what is compiled, a field of `Gain`: "step" or "call".
    """
    if reason := _hindrance(model, device, compiled):
        return Choice(False, reason)
    if not is_convolutional(model.network) or hasattr(model.network, "encode"):
        return _not("the gain for such a network has not been measured")
    gain, threads = GAINS[device], torch.get_num_threads() if device == "cpu" else 1
    saved = gain.saved * passes * _flops(model, data) / gain.flops / threads / 60
    cost = getattr(gain, compiled) * _tensors(model) / 60
    estimate = f"compiling takes about {cost:.1f} min and saves about {saved:,.1f} min"
    return Choice(True, estimate) if saved >= MARGIN * cost else _not(estimate)


def _hindrance(model: Any, device: str, compiled: str) -> str | None:
    """Why a network is not compiled on a device, whatever that saves; `compiled` as in `_earned_back`."""
    if missing := _missing(device):
        return f"there is no {missing}"
    if getattr(GAINS.get(device), compiled, None) is None:
        return f"the gain of a compiled {compiled} on {device} has not been measured"
    tensors, largest = _tensors(model), GAINS[device].largest
    return f"compiling {tensors} weight tensors on {device} takes many minutes" if tensors > largest else None


def _tensors(model: Any) -> int:
    return sum(1 for _ in model.network.parameters())


def warn_of_rounding(precision: str, method: Method) -> None:
    """Warn if half precision rounds the outputs at the two levels of a step by about as much as they differ.

        error of the difference / difference ≈ 2 ε / gap,   gap = (t - s)/t

    with ε = 2⁻⁷ of bfloat16 and 2⁻¹⁰ of float16, measured by `benchmarks/rounding.py`. The warning is for an error of
    one half at the median gap of the last step, which has the smallest gaps of a curriculum.

    Args:
        precision: `trainer.precision`.
        method: the training method.
    """
    if precision not in HALF:
        return
    k, n = method.total_steps - 1, 256
    levels = method.schedule(BatchRandom(0, k, n, slice(0, n)), k, method.total_steps)
    gap = 1 - levels.low / levels.high
    median, smallest = gap[gap > 0].median().item(), 4 * torch.finfo(HALF[precision]).eps
    if median < smallest:
        log.warning(
            "trainer.precision=%s: at the end of this training the levels of a step are %.2g%% apart; below %.2g%%, "
            "more than half of the difference of their outputs is rounding; 32-true rounds less (docs/performance.md)",
            *(precision, 100 * median, 100 * smallest),
        )


def _check_compiler(is_compiled: bool, device: str) -> None:
    if is_compiled and (missing := _missing(device)):
        raise ConfigError("compile", True, "auto or false", reason=f"there is no {missing}")


def _missing(device: str) -> str | None:
    """What compilation on a device needs and this machine lacks."""
    if device == "mps":
        return None  # nothing is known of it
    if device == "cuda" and find_spec("triton") is None:
        return "package triton"
    if device == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (7, 0):
        return "GPU of compute capability 7.0 or more"
    variable, usual = ("CC", ["gcc", "clang"]) if device == "cuda" else ("CXX", ["g++"])
    compilers = [os.environ[variable]] if variable in os.environ else ["clang++"] if sys.platform == "darwin" else usual
    if not any(map(shutil.which, compilers)):
        return f"compiler {' or '.join(compilers)}"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else f"header of Python {header}"


def _not(reason: str) -> Choice:
    return Choice(False, f"{reason}; compile=true compiles")


def _device_type(config: dict[str, Any]) -> str:
    name = config["trainer"]["accelerator"]
    if name in ("cpu", "cuda", "mps"):
        return name
    device = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if device is None else device.type


def _flops(model: Any, data: dict[str, Any]) -> int:
    """Count the operations of a forward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode  # the import takes 0.2 s, and not all commands need it

    x, was_training = torch.zeros(1, data["channels"], data["image_size"], data["image_size"]), model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x, torch.ones(1), conditions.encode(model.network, torch.zeros(1, dtype=torch.int64)))
    model.train(was_training)
    return counter.get_total_flops()
