"""Resuming from a checkpoint: find the file, check it against this training, and log changed settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from consistency_models.app.folder import RunFolder
from consistency_models.callbacks.checkpoint_format import identity_of, same_optimizer
from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.data import Source
from consistency_models.data_spec import listed
from consistency_models.errors import ConfigError, naming, pasteable
from consistency_models.evaluation.runs import IGNORED_KEYS, leaves
from consistency_models.methods.base import Method
from consistency_models.storage.checkpoints import CheckpointError, digest_of, newest_good, read
from consistency_models.storage.moved_names import current_config

log = logging.getLogger(__name__)

__all__ = ["Origin", "find_checkpoint", "origin_of"]


class Origin(NamedTuple):
    """The training that wrote a checkpoint.

    Attributes:
        path: the file.
        step: optimiser steps.
        images: images seen.
        config: the configuration, with current names.
        processes: number of training processes; None if the checkpoint does not record the number.
        seen: number and digest of the training images; empty if the checkpoint does not record them.
        shapes: name -> shape of the tensors of the model and of the method's own networks.
        has_target: whether the target network is a copy.
        is_training: whether the file has the state of an optimiser; an export has none.
        teacher: path and digest of the teacher; empty without a teacher.
        phase: phase of the schedule, for a method that trains its own teachers.
    """

    path: Path
    step: int
    images: int
    config: dict[str, Any]
    processes: int | None
    seen: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    has_target: bool
    is_training: bool
    teacher: dict[str, str]
    phase: int = 0

    def images_seen(self, config: dict[str, Any]) -> ImagesSeen:
        """Return the count of images that continues from this checkpoint."""
        return ImagesSeen(config["data"]["batch_size"], self.step, self.images)

    def check(self, method: Method, run: RunFolder) -> None:
        """Check that training can resume from this checkpoint.

        Raises:
            ConfigError: another network, an export, a target network on one side only, or no steps left.
        """
        state = {name: value for name, value in method.state_dict().items() if not name.startswith("target_copy.")}
        here = {name.removeprefix("model."): tuple(value.shape) for name, value in state.items()}
        differing = sorted(name for name in self.shapes | here if self.shapes.get(name) != here.get(name))
        if differing:
            name = differing[0]
            raise ConfigError(
                "ckpt_path",
                self.path,
                "a checkpoint of the same network",
                "use the network and data settings of that run (its config.yaml)",
                reason=f"{len(differing)} tensors differ, first {name}: "
                f"{self.shapes.get(name, 'missing')} in the file, {here.get(name, 'missing')} here",
            )
        base = getattr(method._teacher[0], "origin", {})
        changed = self.teacher.get("digest") != base.get("digest")  # a folder may be moved
        if getattr(method.model.network, "lora", None) is not None and changed:
            reason = (
                f"its adapters belong to {self.teacher.get('path')}, SHA-256 {str(self.teacher.get('digest'))[:12]}"
            )
            raise ConfigError(
                "ckpt_path", self.path, f"adapters of {base.get('path')}", "or set teacher.path", reason=reason
            )
        start = f"or start a new training from its weights: init=run {pasteable('init.path', self.path)}"
        phase = getattr(method.schedule, "phase", lambda k, K: 0)(self.step, method.total_steps)
        if phase < self.phase:
            reason = f"step {self.step} was in phase {self.phase}, and is in phase {phase} of this training"
            allowed = "a length at which the phase is the same, since a checkpoint has the teacher of its phase only"
            raise ConfigError("trainer.max_steps", method.total_steps, allowed, start, reason=reason)
        if not self.is_training:
            raise ConfigError(
                "ckpt_path", self.path, "a checkpoint of a training", start, reason="this one is an export"
            )
        if self.has_target != (method.target_ema is not None):
            reason = f"that run has {'one' if self.has_target else 'none'}"
            allowed = "a checkpoint of a run with the same model.target_ema"
            raise ConfigError("ckpt_path", self.path, allowed, start, reason=reason)
        is_own_run = self.path.resolve().parent.parent == run.path.resolve()
        if self.step >= method.total_steps and not is_own_run:  # the own run is only completed
            reason = f"this one is of step {self.step}, and training ends at {method.total_steps}"
            fix = f"set trainer.max_steps; {start}"
            raise ConfigError("ckpt_path", self.path, "a checkpoint with steps left", fix, reason=reason)

    def check_classes(self, data: dict[str, Any]) -> None:
        """Check that the classes of the data are those of the run, in the same order.

        Earlier versions recorded no names, and sorted names of digits as text.

        Raises:
            ConfigError: a class of the data has another number than in the run.
        """
        names, then = data.get("class_names"), self.config.get("data", {})
        if not names or not then.get("network_classes"):
            return
        trained = then.get("class_names") or (sorted(names) if all(map(str.isdigit, names)) else names)
        if trained != names:
            start = f"or start a new training from its weights: init=run {pasteable('init.path', self.path)}"
            reason = f"that run has {listed(trained)}; the data have {listed(names)}"
            raise ConfigError("ckpt_path", self.path, "a checkpoint of the same classes", start, reason=reason)

    def log_changes(self, config: dict[str, Any], processes: int, source: Source) -> None:
        """Log what differs from the training that wrote the checkpoint: keys, processes, images of the same folder."""
        before, now = dict(leaves(self.config)), dict(leaves(config))
        changes = [
            f"{key} {before[key]} -> {now[key]}"
            for key in now
            if key in before and before[key] != now[key] and not IGNORED_KEYS.fullmatch(key)
        ]
        if self.processes not in (None, processes):
            changes.append(f"processes {self.processes} -> {processes}")
        for key, value in identity_of(source).items():
            if self.seen.get(key, value) != value:
                changes.append(f"{key} of the training images {self.seen[key]} -> {value}")
        if changes:
            log.warning("changed against the resumed run: %s", "; ".join(changes))
        with naming(self.path, "a checkpoint of a training"):
            is_same = same_optimizer(self.config, config)
        if not is_same:
            log.warning("the checkpoint has the state of another optimiser: the optimiser starts anew")


def find_checkpoint(config: dict[str, Any]) -> Path | None:
    """Return the checkpoint to resume, or None. The newest good one replaces a damaged or missing last.ckpt.

    Raises:
        CheckpointError: the folder has no good checkpoint, or the given file is damaged.
    """
    if config["ckpt_path"] is None:
        return None
    path = Path(config["ckpt_path"]).expanduser()
    wanted = path if path.is_file() else path / "checkpoints" / "last.ckpt"
    try:
        digest_of(wanted)
        return wanted
    except CheckpointError as error:
        good = newest_good(wanted.parent)
        if good is None or path.is_file():  # a file given by name is not replaced
            other = f"the newest good one there is {good}" if good else "the folder has no other good checkpoint"
            raise CheckpointError(error.expected, f"{error.found}; {other}", wanted) from error
        log.warning("%s; going on from %s, the newest good one", error, good)
        return good


def origin_of(path: Path) -> Origin:
    """Read the training of a checkpoint.

    Raises:
        CheckpointError: the file is damaged, or no checkpoint of a training.
    """
    content = read(path)
    with naming(path, "a checkpoint of a training"):
        config, step = current_config(content["config"]), int(content["step"])
        batch_size = config.get("data", {}).get("batch_size", 0) if isinstance(config, dict) else 0
        return Origin(
            path=path,
            step=step,
            images=int(content.get("images_seen", step * batch_size)),
            config=config if isinstance(config, dict) else {},
            processes=(content["trainer"] or {}).get("processes"),
            seen={key: str(value) for key, value in (content["trainer"] or {}).get("images", {}).items()},
            shapes={
                name: tuple(value.shape) for name, value in {**content["model"], **content.get("method", {})}.items()
            },
            has_target=content["target"] is not None,
            is_training=bool(content["trainer"]),
            teacher=content["teacher"] or {},
            phase=int(((content["trainer"] or {}).get("phase") or {}).get("phase", 0)),
        )
