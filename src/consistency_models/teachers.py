"""Teachers (`teacher=`), initial weights (`init=`) and guidance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import nn

from consistency_models import pretrained
from consistency_models.data.mixture import Mixture
from consistency_models.data_spec import DataSpec
from consistency_models.errors import ConfigError
from consistency_models.sampling.guidance import Guided
from consistency_models.storage.loading import instantiate, load
from consistency_models.values import Distinct, Text, Weights, checked, facts

__all__ = [
    "Guided",
    "build_teacher",
    "diffusers_teacher",
    "exact_teacher",
    "official_teacher",
    "run_teacher",
    "weights_of_pretrained",
    "weights_of_run",
    "weights_of_teacher",
]

log = logging.getLogger(__name__)


def build_teacher(config: dict[str, Any]) -> nn.Module | None:
    """Build the teacher, with classifier-free guidance or guidance by the weaker model of the run `teacher.weak`.

    With guidance=null, the scale of each row is given at the call: 1 + `Prompt.guidance` if the data draw w, or the
    argument `guidance` if the method draws it.

    Raises:
        ConfigError: the images or classes of the teacher differ from those of the student, or guidance is impossible.
    """
    data, options, own = DataSpec.of(config["data"]), config["teacher"], ("guidance", "weak", "interval")
    guidance, weak, interval = options.get("guidance", 1.0), options.get("weak"), options.get("interval")
    if not options["_target_"]:
        return None
    teacher = instantiate({key: value for key, value in options.items() if key not in own})
    _check_fits(teacher, "teacher.path", config["teacher"]["path"], data)
    drawn = (config["data"].get("guidance_w"), config["model"].get("guidance_input"))
    if guidance == 1 or (guidance is None and drawn == (None, None)):
        return teacher
    if weak is not None:
        weaker = run_teacher(weak)
        _check_fits(weaker, "teacher.weak", weak, data)
        return Guided(teacher, guidance, weaker, interval)
    network = getattr(teacher, "network", None)
    takes_text = getattr(network, "takes_text", False)
    if not takes_text and (not data.num_classes or (network is not None and not _hides_labels(network))):
        reason = "the teacher is unconditional, or was not trained with network.label_dropout"
        raise ConfigError("teacher.guidance", guidance, "1.0, or any with teacher.weak=FOLDER", reason=reason)
    return Guided(teacher, guidance, interval=interval)


def _check_fits(teacher: nn.Module, key: str, path: str, data: DataSpec) -> None:
    network = getattr(teacher, "network", None)
    if network is None:  # a closed form fits the data by construction
        return
    takes_text = getattr(network, "takes_text", False)
    for name in ("image_size", "channels"):
        value, own = getattr(network, name), getattr(data, name)
        if value != own and takes_text and name == "image_size":
            log.warning("%s=%s was trained at data.image_size=%d; this training uses %d", key, path, value, own)
        elif value != own:
            allowed, reason = f"a model of images of data.{name}={own}", f"this one was made for {value}"
            raise ConfigError(key, path, allowed, reason=reason)
    if network.num_classes != data.num_classes:
        allowed = f"a model of {data.num_classes} classes, as the student"
        reason = f"this one has {network.num_classes}, where 0 is unconditional"
        raise ConfigError(key, path, allowed, "see data.conditional", reason=reason)


@facts(reads="a run")
@checked
def run_teacher(path: Text, weights: Weights | None = None) -> nn.Module:
    """Load the model of another run, with its averaged weights."""
    generator = load(path, weights)
    return _as_teacher(generator.model, generator.origin, generator.make_sampler)


@facts(reads="an official file")
@checked
def official_teacher(path: Text, kinds: Annotated[Sequence[Text], MinLen(1), Distinct]) -> nn.Module:
    """Load the model of an official checkpoint of one of these kinds, see `pretrained.Pretrained.kind`."""
    loaded = pretrained.load(path)
    if loaded.kind not in kinds:
        raise ConfigError(
            "teacher.path", path, f"a file of kind {', '.join(kinds)}", reason=f"this one is {loaded.kind}"
        )
    return _as_teacher(loaded.model, {"path": path, "digest": loaded.digest}, loaded.recipe["sampler"])


@facts(reads="a pipeline", needs_package="diffusers")
@checked
def diffusers_teacher(path: Text) -> nn.Module:
    """Load the U-Net of a diffusers pipeline from its folder, with the scalings of the scheduler."""
    loaded = pretrained.load_pipeline(path)
    return _as_teacher(loaded.model, {"path": path, "digest": loaded.digest}, loaded.recipe["sampler"])


def _as_teacher(model: nn.Module, origin: dict[str, Any], make_sampler: Any) -> nn.Module:
    """Mark a model with its origin, and with the fact whether its sampler is one of consistency models.

    A checkpoint names the absolute path, which is loaded from any working directory.

    Args:
        model: the model.
        origin: at least path and digest of the file.
        make_sampler: a partial of the class of the sampler, or of a class method.
    """
    model.origin = origin | {"path": str(Path(origin["path"]).expanduser().absolute())}
    sampler = getattr(make_sampler.func, "__self__", make_sampler.func)
    model.is_consistency_model = getattr(sampler, "of_consistency_models", False)
    return model


def _hides_labels(network: nn.Module) -> bool:
    return any(getattr(module, "label_dropout", 0) > 0 for module in network.modules())


@facts(reads=None, needs_closed_form=True)
def exact_teacher(source: Mixture, path: None = None) -> nn.Module:
    """Return the closed-form denoiser of a Gaussian mixture."""
    if not source.has_closed_form:
        reason = "only mixtures have a closed-form denoiser"
        raise ConfigError("teacher", "exact", "exact with data=mixture or data=mixture_16d", reason=reason)
    return _Exact(source)


class _Exact(nn.Module):
    """A module that wraps the closed-form denoiser, so that it has the interface of other teachers."""

    is_consistency_model = False

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source
        self.origin = {"path": "exact", "digest": source.digest}

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.source.denoised(x, sigma, labels)


@facts(reads=None, needs_teacher=True)
def weights_of_teacher(model: nn.Module, teacher: nn.Module | None, path: None = None) -> None:
    """Initialise the student with the teacher's weights."""
    if teacher is None or not any(True for _ in teacher.parameters()):
        log.info("init=teacher: the teacher has no weights; the network is initialised at random")
        return
    if getattr(model.network, "lora", None) is not None:  # the weights of adapters are shared with the teacher
        return
    _copy(teacher, model, "init", "teacher")


@facts(reads="a run")
@checked
def weights_of_run(
    model: nn.Module, path: Text | Path, teacher: nn.Module | None = None, weights: Weights | None = None
) -> None:
    """Initialise the network with the weights of another run."""
    _copy(load(path, weights).model, model, "init.path", path)


@facts(reads="an official file")
@checked
def weights_of_pretrained(model: nn.Module, path: Text | Path, teacher: nn.Module | None = None) -> None:
    """Initialise the network with the weights of an official checkpoint."""
    _copy(pretrained.load(path).model, model, "init.path", path)


def _copy(source: nn.Module, model: nn.Module, key: str, value: object) -> None:
    """Copy weights to a network.

    Weights of augmentation labels and of EDM2's uncertainty head are skipped if the network has none, as ECT does.
    Layers of inputs that the source does not have start at zero, so that the inputs have no effect at first: those of a
    second time, those that the network names as `starts_at_zero`, and those of augmentation labels and other inputs.
    """
    weights, wanted = source.network.state_dict(), model.network.state_dict()
    named = tuple(getattr(model.network, "starts_at_zero", ()))
    one_time = not getattr(source.network, "two_times", False)
    new = {
        name
        for name in wanted.keys() - weights.keys()
        if name.startswith(named) or "_augment" in name or (one_time and "_end." in f"{name}.")
    }
    weights |= {name: wanted[name] for name in new}
    for name in weights.keys() - wanted.keys():
        if name == "map_augment.weight" or name.startswith("logvar_"):
            del weights[name]
    if "map_augment.weight" in new:  # the others are initialised to zero, or have a gain that is
        weights["map_augment.weight"] = torch.zeros_like(wanted["map_augment.weight"])
    for tensor in wanted | weights:
        shape, own_shape = (tuple(side[tensor].shape) if tensor in side else None for side in (weights, wanted))
        if shape != own_shape:
            reason = f"{tensor} is {shape} there, {own_shape} here"
            fix = "set network as its config.yaml does, or init=random"
            raise ConfigError(key, value, "a model with the network of this training", fix, reason=reason)
    theirs, ours, one = getattr(source, "model", source).preconditioning, model.preconditioning, torch.ones(1)
    if any(not torch.isclose(getattr(theirs, c)(one), getattr(ours, c)(one), atol=0.1) for c in ("c_out", "c_noise")):
        from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # evaluation runs without Lightning

        kinds = type(theirs).__name__, type(ours).__name__
        rank_zero_warn(
            f"{key}={value}: weights that were trained with the preconditioning {kinds[0]} start a model with "
            f"{kinds[1]}, which calls the network with other noise labels or another sign. Choose the same for both"
        )
    model.network.load_state_dict(weights)
