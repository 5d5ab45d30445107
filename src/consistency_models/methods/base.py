"""The training step that all methods share.

    draw levels s < t       x_t = x + t·n       online = f_θ(x_t, t)       target = no_grad[ … ]
    loss = w(s, t) · d(online, target)

A method is a subclass that defines its target. The base class handles the optimiser, the EMA of the target network, the
seeds and the logged values. Callbacks handle weights for evaluation, checkpoints and pictures.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from consistency_models import conditions
from consistency_models.conditions import Prompt
from consistency_models.methods.differences import central_difference
from consistency_models.networks.layout import compile_in_place, differentiable_norms
from consistency_models.networks.lora import shared_names
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.schedules import Levels, per_image
from consistency_models.optim.ema import ema_update
from consistency_models.optim.optimizers import match_layouts
from consistency_models.optim.sharding import local_shards
from consistency_models.random import BatchRandom

__all__ = ["Method", "Step", "frozen_copy"]


@dataclass
class Step:
    """One training step of one micro-batch.

    Attributes:
        x: clean images in [-1, 1], shape (B, C, H, W).
        noise: standard normal noise, shape of x; the same for both levels.
        x_t: the images at the high level t, x + t·noise (`Method.network_input`).
        levels: the noise levels s = `levels.low` < t = `levels.high`, shape (B,).
        labels: the condition: one-hot classes (B, classes), a `Prompt`, or None.
        augment: labels of the augmentation and other inputs of the network (B, augment_dim), or None (`Method.inputs`).
        progress: k / K in [0, 1), the completed share of training.
        rows: rows of the global batch, with their random numbers.
        online: the output that is trained, without gradient; set before `Method.target` is called.
        classes: the argument of `Method.encode_labels`, which may drop rows: classes (B,), a `Prompt`, or None.
        augmentation: labels of the augmentation alone, which the teacher takes, too, or None.
    """

    x: Tensor
    noise: Tensor
    x_t: Tensor
    levels: Levels
    labels: Any
    augment: Tensor | None
    progress: float
    rows: BatchRandom
    online: Tensor | None = None
    classes: Any = None
    augmentation: Tensor | None = None

    def at(self, s: Tensor) -> Tensor:
        """x + s·noise for levels s of shape (B,): the same images and noise at another level."""
        return self.x + per_image(s.to(self.x.dtype), self.x) * self.noise


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy a model without gradients. The copy is compiled if the model is, because deepcopy drops the compilation."""
    base = shared_names(model)  # of adapters: it is not copied
    kept = {id(parameter): parameter for name, parameter in model.named_parameters() if name in base}
    copied = copy.deepcopy(model, kept).requires_grad_(False)
    for module, twin in zip(model.modules(), copied.modules()):
        if module._compiled_call_impl is not None:
            compile_in_place(twin)
    return copied


class Method(LightningModule):
    """A training method: a subclass defines `target` and may override the other hooks.

    The optimiser trains every parameter of the module that requires a gradient. Submodules of a subclass, such as a
    learned weighting, are saved in the checkpoint under `method`.

    Args:
        model: the preconditioned network f_θ(x, sigma, labels, augment) -> denoised.
        schedule: draws the levels of a step, `schedule(rows, k, K) -> Levels`.
        distance: d(online, target) -> (B,).
        weighting: w(levels) -> (B,).
        optimizer: parameters -> torch optimiser.
        learning_rate: factor of the optimiser's learning rate, `learning_rate(k, K, batch_size) -> float`.
        total_steps: K, the number of optimiser steps of the training.
        target_ema: decay μ(k) of the target network, `target_ema(k, K) -> float`; None: the target is the model itself.
        teacher: frozen denoiser of a method that distils, or None.
        augment: augmentation of the clean images, `augment(images, rows) -> (images, labels)`, or None.

    Raises:
        ValueError: the method needs a teacher and has none, does not support a teacher and has one, needs a model of
            two times and has one of one time, or has no target network and a decay of one.
    """

    rows_together: int = 1
    """Number of neighbouring rows of the global batch that a micro-batch must not divide."""
    needs_teacher: bool | None = False
    """True: the method needs a teacher; False: the method uses no teacher; None: the teacher is optional."""
    needs_levels: str | None = None
    """Required value of the schedule's `draws`; None: any schedule."""
    needs_network_of: str | None = None
    """Required value of the preconditioning's `predicts`; None: any preconditioning."""
    has_target_network: bool = True
    """False: the method has no use for `target_ema`, since its target is not that of a slowly changing network."""
    guidance_inputs: int = 0
    """Number of inputs of the network that the guidance takes if `guidance_input` is set."""
    second_head: bool = False
    """True: the method can train a second output of the network, see `network.outputs`."""
    difference: float | None = None
    """Share h by which `derivative` moves the level for a central difference; None: derivatives in forward mode."""
    varying_batches: bool = False
    """True: the method calls the teacher on batches of varying sizes. Each size would be compiled anew."""
    needs_two_times: bool = False
    """True: the method calls the network with two times."""
    teacher_is_consistent: bool = False
    """True: the teacher is a consistency model, which returns the end of a trajectory; False: a diffusion model."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Warn of an attribute whose name is nearly that of a hook or fact, which would not be called or read."""
        super().__init_subclass__(**arguments)
        known = [name for name in (*vars(Method), "on_save_checkpoint", "on_load_checkpoint") if name[0] != "_"]
        for name in vars(cls):
            if name[0] == "_" or hasattr(Method, name):
                continue
            if near := difflib.get_close_matches(name, known, 1, cutoff=0.85):
                rank_zero_warn(f"{cls.__name__}.{name} has no meaning for Method: did you mean {near[0]}?")

    def __init__(
        self,
        model: Preconditioned,
        schedule: Callable[[BatchRandom, int, int], Levels],
        distance: nn.Module,
        weighting: Callable[[Levels], Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
        learning_rate: Callable[[int, int, int], float],
        total_steps: int,
        target_ema: Callable[[int, int], float] | None = None,
        teacher: nn.Module | None = None,
        augment: Callable[[Tensor, BatchRandom], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if self.needs_teacher is not None and self.needs_teacher != (teacher is not None):
            raise ValueError(
                f"{type(self).__name__} {'needs a teacher' if self.needs_teacher else 'has no use for a teacher'}: "
                f"choose teacher={'run, exact, …' if self.needs_teacher else 'none'}"
            )
        if self.needs_two_times and not model.two_times:
            raise ValueError(
                f"{type(self).__name__} needs a network of two times, with the attribute two_times = True; "
                f"{type(model.network).__name__} has one time"
            )
        if target_ema is not None and not self.has_target_network:
            raise ValueError(f"{type(self).__name__} has no target network: target_ema must be None")
        consistent = getattr(teacher, "is_consistency_model", self.teacher_is_consistent)
        if consistent != self.teacher_is_consistent:
            kinds = (
                "a consistency model, which gives the end of a trajectory",
                "a diffusion model, which gives a mean",
            )
            actual, expected = kinds if consistent else reversed(kinds)
            marked: Any = teacher  # only a teacher from a file has the mark, and its origin
            path = marked.origin["path"]
            rank_zero_warn(f"teacher.path={path} is {actual}; {type(self).__name__} asks for {expected}")
        self.model = model
        self.schedule, self.distance, self.weighting, self.augment = schedule, distance, weighting, augment
        self.make_optimizer, self.learning_rate = optimizer, learning_rate
        self.total_steps = total_steps
        self.target_ema = target_ema
        if target_ema is not None:
            self.target_copy = frozen_copy(model)
        # A tuple hides the teacher from torch: no checkpoint contains it, and DDP does not synchronise it.
        self._teacher: tuple[Any] = (teacher,)
        self.sharded = False  # set by trainer=fsdp: all processes must call the model together
        self.list_weights()
        self.paused = 0.0  # seconds of pictures, validation and saves
        self.skipped = False  # set by FiniteGuard: this step does not change the weights
        self.teacher_calls = 0  # evaluations of the teacher in this micro-batch, in images
        self.monitored: dict[str, list[Tensor]] = {}  # device tensors of this step, one a micro-batch
        self.losses_by_level: list[Tensor] = []  # (2, B) of each micro-batch of this step: levels, and losses

    def list_weights(self) -> None:
        """List the trained parameters of the model and of its slow copy, or the slices of this process."""
        # Lists, because collecting the parameters from the modules takes as long as averaging them.
        trained = [parameter.requires_grad for parameter in self.model.parameters()]
        self.weights: list[Tensor] = local_shards(compress(self.model.parameters(), trained))
        if self.target_ema is not None:
            self.target_weights: list[Tensor] = local_shards(compress(self.target_copy.parameters(), trained))

    # Hooks

    def inputs(self, step: Step) -> Tensor | None:
        """Additional inputs of the network (B, augment_dim), or None: the labels of the augmentation in `step.augment`.

        A method whose network takes more numbers, such as a scale of guidance, returns them behind these labels.
        """
        return step.augment

    def network_input(self, step: Step) -> Tensor:
        """The input of the online network, shape of x: x_t = x + t·noise."""
        return step.at(step.levels.high)

    def online(self, step: Step) -> Tensor:
        """The output of the trained network: f_θ(x_t, t), or f_θ(x_t, t, end) for a model of two times; shape of x."""
        levels = step.levels
        end = levels.end if self.model.two_times else None
        return self.model(step.x_t, levels.high, step.labels, step.augment, end)

    def target(self, step: Step) -> Tensor:
        """The target of the online output, shape of x.

        The method is called under `no_grad`, with the dropout masks of the online pass.
        """
        raise NotImplementedError(f"{type(self).__name__} must define target(step)")

    def loss(self, step: Step, online: Tensor, target: Tensor) -> Tensor:
        """The loss of each image, shape (B,): w(s, t) · d(online, target).

        Raises:
            ValueError: the target has another shape than the online output, or the distance another shape than (B,).
        """
        if target.shape != online.shape:
            found = f"{tuple(target.shape)} and {tuple(online.shape)}"
            raise ValueError(f"{type(self).__name__}: target and online output must have one shape; got {found}")
        distance = self.distance(online, target)
        if distance.shape != step.levels.high.shape:
            raise ValueError(
                f"a distance of {len(online)} images must have shape ({len(online)},); "
                f"{type(self.distance).__name__} has {tuple(distance.shape)}"
            )
        return self.weighting(step.levels) * distance

    def on_step_start(self, k: int, K: int) -> None:
        """Called before each micro-batch of step k of K. Methods override it to change their parts during training."""

    def parameter_groups(self) -> list[Any]:
        """The parameters that the optimiser trains, or groups of them with their own options.

        A method may give a part its own learning rate: `[{"params": …}, {"params": …, "lr": 1e-4}]`.
        """
        return self.trainable

    # Tools of the hooks

    @property
    def target_model(self) -> nn.Module:
        """f_θ⁻: the averaged copy of the model if `target_ema` is given, otherwise the model."""
        return self.model if self.target_ema is None else self.target_copy

    def teacher(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | Prompt | None = None,
        augment: Tensor | None = None,
        **given: Any,
    ) -> Any:
        """The teacher's denoised images at level sigma (B,). Network calls are counted in `teacher_calls`.

        Args:
            x, sigma, labels: images (B, ...), levels (B,) and the condition.
            augment: `Step.augmentation`.
            given: further arguments of the teacher, such as `guidance` (B,) of `teachers.Guided`.

        Raises:
            ValueError: there is no teacher.
        """
        if self._teacher[0] is None:
            raise ValueError(f"{type(self).__name__} calls a teacher: declare needs_teacher = True, or None")
        self.teacher_calls += len(x) * getattr(self._teacher[0], "calls", 1)
        given |= {} if augment is None else {"augment": augment}
        return self._teacher[0](x, sigma, labels, **given)

    def derivative(
        self, step: Step, function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The value of `function` at the primals, and its derivative along the tangents.

        Both are computed without gradient, in float32 (float64 if the primals are float64), and with the dropout masks
        of this step, in forward mode, or by differences if the method sets `difference`. Attention uses the math
        kernel, because the fused kernels have no forward-mode derivative. Networks run eagerly, without compilation and
        without DDP's wrapper.

        Args:
            step: the training step.
            function: for instance `lambda x, sigma: self.model(x, sigma, step.labels)`.
            primals, tangents: tensors of equal shapes; the last primal is the level (B,).
        """
        dtype = torch.promote_types(step.x.dtype, torch.float32)
        primals, tangents = (tuple(each.to(dtype) for each in part) for part in (primals, tangents))

        def seeded(*arguments: Tensor) -> Tensor:
            step.rows.seed_dropout()
            return function(*arguments)

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.autocast(step.x.device.type, enabled=False):
            if self.difference is not None:
                with torch.compiler.set_stance("force_eager"):
                    return central_difference(seeded, primals, tangents, self.difference)
            with differentiable_norms():
                value, derivative, *_ = torch.func.jvp(seeded, primals, tangents)
        return value, derivative

    # The step

    def training_step(self, batch, batch_index: int) -> Tensor:
        """Compute the mean loss of a micro-batch."""
        rows, k, K = batch.rows, batch.rows.step, self.total_steps
        self.on_step_start(k, K)
        levels = self.schedule(rows, k, K).to(self.device)
        x, augment = (batch.images, None) if self.augment is None else self.augment(batch.images, rows)
        step = Step(
            x=x,
            noise=rows.randn("noise", *x.shape[1:], device=self.device),
            x_t=x,
            levels=levels,
            labels=self.encode_labels(batch.labels, rows),
            augment=augment,
            progress=k / K,
            rows=rows,
            classes=batch.labels,
            augmentation=augment,
        )
        step.augment = self.inputs(step)
        self.teacher_calls = 0
        step.x_t = self.network_input(step)
        # The pass with gradient comes first: autocast caches weights, and a copy cached under no_grad has no gradient.
        rows.seed_dropout()
        online = self.online(step)
        step.online = online.detach()
        rows.seed_dropout()
        with torch.no_grad():
            target = self.target(step)
        loss = self.loss(step, online, target)
        if loss.shape != levels.high.shape:
            allowed = f"({len(x)},), one number for each image"
            raise ValueError(f"{type(self).__name__}.loss must have shape {allowed}; got {tuple(loss.shape)}")
        if levels.weight is not None:
            loss = levels.weight * loss
        self.monitor(loss.detach(), levels.high)
        return loss.mean()

    def encode_labels(self, labels: Any, rows: BatchRandom) -> Any:
        """The condition of the network, see `conditions.encode`. A zero one-hot row is the null class.

        Args:
            labels: classes (B,), a `Prompt`, or None.
            rows: random numbers of this micro-batch, for a method that drops labels.
        """
        return conditions.encode(self.model.network, labels)

    def monitor(self, loss: Tensor, high: Tensor) -> None:
        """Record the loss of this micro-batch for the log, and the loss of each image with its level."""
        self.monitored.setdefault("train/loss", []).append(loss.mean())
        self.losses_by_level.append(torch.stack([high.float(), loss.float()]))

    # Lightning's part

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """The state of the module without the base of adapters, which is the teacher's."""
        state, shared = super().state_dict(*args, **kwargs), shared_names(self)
        return {name: value for name, value in state.items() if name not in shared}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state. The base of adapters is not in it.

        Raises:
            RuntimeError: another name is missing, or a name is unknown.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = set(result.missing_keys) - shared_names(self)
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(f"missing: {sorted(missing)[:5]}, unknown: {result.unexpected_keys[:5]}")
        return result

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimiser of all trainable parameters. Its learning rate is set at each step."""
        self.trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = self.make_optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        # With float16, gradients are unscaled before they are checked, logged and clipped, not within a fused step.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # read by GradScaler
        self._options = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        return optimizer

    def on_train_start(self) -> None:
        """Set the optimiser's options and memory layouts, because a checkpoint restores the saved ones.

        Raises:
            ValueError: the subclass has optimisers of its own.
        """
        if not hasattr(self, "_options"):
            raise ValueError(
                f"{type(self).__name__}.configure_optimizers: a method has one optimiser, that of optimizer=NAME; "
                "override parameter_groups to give a part its own learning rate"
            )
        optimizer = self.trainer.optimizers[0]
        for group, options in zip(optimizer.param_groups, self._options):
            group.update(options)
        match_layouts(optimizer)

    def on_fit_start(self) -> None:
        """Move the teacher to the device and set eval mode, because Lightning does not see the teacher."""
        if self._teacher[0] is not None:
            self._teacher[0].to(self.device).eval().requires_grad_(False)

    def on_train_batch_start(self, batch, batch_index: int) -> None:
        """At the first micro-batch of step k, set the learning rate, clear the losses, and normalise EDM2's weights."""
        if batch.rows.step != getattr(self, "_begun", None):
            self._begun = batch.rows.step
            self.monitored.clear()
            self.losses_by_level.clear()
            factor = self.learning_rate(batch.rows.step, self.total_steps, batch.rows.total)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = group["initial_lr"] * factor
            force_norm: Any = getattr(self.model.network, "force_norm", None)
            if force_norm is not None:
                force_norm()

    def optimizer_step(self, epoch, batch_index, optimizer, closure=None) -> None:
        """Step the optimiser, then the target network: θ⁻ ← μ(k) θ⁻ + (1 - μ(k)) θ."""
        k = self.trainer.global_step
        super().optimizer_step(epoch, batch_index, optimizer, closure)
        if self.target_ema is not None and not self.skipped:
            decay = self.target_ema(k, self.total_steps)
            ema_update(self.target_weights, self.weights, decay)
