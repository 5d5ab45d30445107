"""Lightning's checkpoint plugin, which stores checkpoints in the format of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from consistency_models.callbacks.images_seen import ImagesSeen
from consistency_models.data import Source
from consistency_models.storage.checkpoints import SCHEMA, read, write

__all__ = ["CheckpointFormat", "identity_of", "same_optimizer"]


class CheckpointFormat(CheckpointIO):
    """Converts Lightning's checkpoints to the format of `storage.checkpoints` and back.

    Args:
        config: the resolved configuration, plain dicts and lists.
        images_seen: images_seen(k) is the number of images after step k.
        source: the training images.
        teacher: path and digest of the teacher, whose weights are not stored; None without a teacher.
    """

    def __init__(
        self, config: dict[str, Any], images_seen: ImagesSeen, source: Source, teacher: dict[str, str] | None = None
    ) -> None:
        self.config, self.images_seen, self.teacher = config, images_seen, teacher
        self.images = identity_of(source)  # now: a save on a signal has no time for it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write Lightning's checkpoint in the format of this project."""
        rest = dict(checkpoint)
        weights = rest.pop("state_dict")
        callbacks = dict(rest.pop("callbacks", {}))
        target = _under("target_copy.", weights)
        write(
            {
                "schema": SCHEMA,
                "step": rest["global_step"],
                "images_seen": self.images_seen(rest["global_step"]),
                "config": self.config,
                "model": _under("model.", weights),
                "target": target or None,
                "method": {name: weights[name] for name in weights if not name.startswith(("model.", "target_copy."))},
                "ema": callbacks.pop("WeightEMA", {}),
                "optimizer": rest.pop("optimizer_states", [{}])[0],
                "teacher": self.teacher,
                "trainer": {**rest, "callbacks": callbacks, "processes": _processes(), "images": self.images},
            },
            path,
        )

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        """Read a checkpoint and convert it to Lightning's format."""
        content = read(path)
        rest = dict(content["trainer"])
        weights = {f"model.{name}": value for name, value in content["model"].items()}
        weights |= {f"target_copy.{name}": value for name, value in (content["target"] or {}).items()}
        weights |= content.get("method", {})
        return {
            **rest,
            "state_dict": weights,
            "optimizer_states": [content["optimizer"]] if same_optimizer(content["config"], self.config) else [],
            "callbacks": {**rest["callbacks"], "WeightEMA": content["ema"]},
        }

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def identity_of(source: Source) -> dict[str, str]:
    """Return the number n of the training images, and their digest if they are decoded.

    The digest of encoded images depends on the paths and times of their files, and so would change with a copy.
    """
    return {"n": str(source.n)} | ({"digest": source.digest} if source.is_decoded else {})


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def same_optimizer(saved: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether the optimisers of two configurations have the same state, by the names of their classes.

    torch's RAdam and this package's RAdam have the same state.
    """
    names = [part["optimizer"]["_target_"].rpartition(".")[2] for part in (saved, config) if "optimizer" in part]
    return len(set(names)) < 2


def _under(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
