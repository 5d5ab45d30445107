"""Detection of steps with NaN or Inf: the run stops without saving, or skips the step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from consistency_models.callbacks.deferred import Deferred
from consistency_models.callbacks.step import StepCallback
from consistency_models.data.batch import Slot
from consistency_models.errors import NonFiniteError, pasteable
from consistency_models.random import BatchRandom
from consistency_models.values import Size, checked

__all__ = ["FiniteGuard"]

RECORD = "non_finite.jsonl"


class FiniteGuard(StepCallback):
    """Checks the loss and the gradient norm of every step. Both are those of the global batch on every process.

    `stop`: raises `NonFiniteError`. The values are read one step late and before every save, so that a step needs no
    synchronisation, and no checkpoint holds weights after a non-finite step.

    `skip`: skips the step. Weights, their averages, the target network and the optimiser do not change (the gradients
    are removed, so that the optimiser has nothing to do), and the step still counts as step k. Optimisers keep their
    step counts on the host, so the host must know whether to skip: one synchronisation per step.

    With float16 (`precision=16-mixed`) gradients overflow while the loss scale is adapted. Such steps are skipped with
    either policy. For a loss that is not finite, the policy decides.

    A non-finite step is recorded in `non_finite.jsonl` of the run folder: step, seed, loss, gradient norm, the images
    of its global batch, and which of them are not finite. Since every random number is a function of (seed, step),
    resuming from the previous checkpoint repeats the step.

    Args:
        policy: stop or skip.
        max_consecutive: a run stops after more consecutive skipped steps than this; at least 1.

    Raises:
        ValueError: the policy is neither, or max_consecutive is below 1.
    """

    state_key = "FiniteGuard"

    needs_callbacks = ("metrics",)

    @checked
    def __init__(self, policy: Literal["stop", "skip"] = "stop", max_consecutive: Size = 20) -> None:
        self.policy, self.max_consecutive = policy, max_consecutive
        self.skipped = self.in_a_row = 0
        self._figures: dict[str, Tensor] = {}
        self._waiting: tuple[int, Deferred] | None = None

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Delete records of steps that will be repeated."""
        super().on_train_start(trainer, method)
        file = Path(trainer.default_root_dir) / RECORD
        if trainer.is_global_zero and file.exists():
            lines = file.read_text(errors="replace").splitlines()
            file.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= trainer.global_step))

    def on_before_optimizer_step(self, trainer: Trainer, method: LightningModule, optimizer) -> None:
        """Store loss and gradient norm; if steps may be skipped, remove the gradients of a non-finite step."""
        self._figures = _figures(trainer, method)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self.policy == "stop" and not scaled:
            return
        loss, norm = torch.stack(list(self._figures.values())).tolist()
        method.skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if not method.skipped:
            self.in_a_row = 0
            return
        step, overflow = trainer.global_step + 1, scaled and math.isfinite(loss)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row > self.max_consecutive or not (overflow or self.policy == "skip"):
            raise _error(trainer, step, loss, norm)
        if not overflow:
            _record(trainer, step, loss, norm)
        optimizer.zero_grad(set_to_none=True)

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Check the previous step, and start copying the values of this step to the host."""
        self.check(trainer)
        if not method.skipped:
            self._waiting = (step, Deferred(self._figures))

    def check(self, trainer: Trainer) -> None:
        """Read the waiting values.

        Raises:
            NonFiniteError: the step was not finite.
        """
        if self._waiting is None:
            return
        (step, deferred), self._waiting = self._waiting, None
        figures = deferred.read()
        if not all(map(math.isfinite, figures.values())):
            raise _error(trainer, step, **figures)

    def on_save_checkpoint(self, trainer: Trainer, method: LightningModule, checkpoint: dict) -> None:
        """Refuse to save weights after a non-finite step.

        Raises:
            NonFiniteError: a step was not finite, or the weights are not: a finite gradient can make them overflow.
        """
        self.check(trainer)
        weights = [value for value in checkpoint["state_dict"].values() if value.is_floating_point()]
        finite = bool(torch.nn.utils.get_total_norm(weights).isfinite())
        if not trainer.strategy.reduce_boolean_decision(finite):  # where weights are sharded, one process has them
            raise NonFiniteError(
                f"the weights after step {trainer.global_step} are NaN or Inf; training stopped and they were not "
                f"saved. {ADVICE}"
            )

    def state_dict(self) -> dict[str, int]:
        """Return the number of skipped steps, in total and in a row."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counts of the checkpoint."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


ADVICE = "Lower optimizer.lr, set trainer.gradient_clip_val, or use trainer.precision=32-true"


def _step_of(line: str) -> float:
    """The step of a record; infinite for a line that was truncated by a full disk."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _figures(trainer: Trainer, method: LightningModule) -> dict[str, Tensor]:
    """Loss and gradient norm of the step, on the device; the same on all processes.

    DDP averages the gradients. The loss is checked, too, because |online - NaN| has the gradient sign(NaN) = 0.
    """
    loss = torch.stack(method.monitored["train/loss"]).mean()
    if trainer.world_size > 1:
        torch.distributed.all_reduce(loss)
        loss = loss / trainer.world_size
    return {"loss": loss, "norm": method.monitored["train/gradient_norm"][0].to(loss.dtype)}


def _record(trainer: Trainer, step: int, loss: float, norm: float) -> list[int]:
    """Record the step on the first process, and return the rows of its global batch that are not finite."""
    sampler, source = trainer.train_dataloader.sampler, trainer.train_dataloader.dataset
    rows = BatchRandom(sampler.seed, step - 1, sampler.total, slice(0, sampler.total))
    indices = sampler.indices(rows)
    finite = source[Slot(rows, indices)].images.flatten(1).isfinite().all(1).cpu()
    bad = (~finite).nonzero().flatten().tolist()
    if trainer.is_global_zero:
        entry = {"step": step, "seed": sampler.seed, "loss": str(loss), "gradient_norm": str(norm)}
        entry |= {"images": None if indices is None else indices.tolist(), "rows_not_finite": bad}
        with open(Path(trainer.default_root_dir) / RECORD, "a") as file:
            file.write(json.dumps(entry) + "\n")
    return bad


def _error(trainer: Trainer, step: int, loss: float, norm: float) -> NonFiniteError:
    bad = _record(trainer, step, loss, norm)
    source = "loss" if math.isfinite(norm) else "gradient"
    images = f", {len(bad)} of its images are not finite" if bad else ""
    folder = trainer.default_root_dir
    return NonFiniteError(
        f"the {source} of step {step} is NaN or Inf (loss {loss:g}, gradient norm {norm:g}{images}); training stopped "
        f"and the step was not saved. {Path(folder) / RECORD} records the step. {ADVICE}; "
        "callbacks.finite.policy=skip skips such steps; "
        f"{pasteable('ckpt_path', folder)} +trainer.detect_anomaly=true repeats the step and names the operation"
    )
