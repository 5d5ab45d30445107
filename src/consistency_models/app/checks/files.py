"""Checks of the files and folders in a configuration."""

from __future__ import annotations

import re
from pathlib import Path

from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.rules import nearest
from consistency_models.errors import ConfigError, Exit, pasteable
from consistency_models.files import is_checkpoint, is_pipeline

__all__ = ["has_checkpoint", "wrong_checkpoint", "wrong_path", "wrong_pipeline"]

ARTIFACT = re.compile(r"wandb:[^/:\s]+/[^/:\s]+/[^/:\s]+:[^/:\s]+")
LAST = Path("checkpoints", "last.ckpt")


def has_checkpoint(folder: Path) -> bool:
    """Whether a run folder has a checkpoint that ends with a digest."""
    return any(map(is_checkpoint, (folder / "checkpoints").glob("*.ckpt")))


def wrong_path(key: str, path: str, what: str) -> list[ConfigError]:
    """Return the problem of a missing path, with the most similar existing name; artifacts of W&B are not looked up."""
    if str(path).startswith("wandb:"):
        form = "wandb:ENTITY/PROJECT/NAME:ALIAS, an artifact of W&B"
        return [] if ARTIFACT.fullmatch(path) else [problem(key, path, form)]
    where = Path(path).expanduser()
    if where.exists():
        return []
    existing = next((parent for parent in where.parents if parent.is_dir()), None)
    first = where.relative_to(existing).parts[0] if existing else ""
    try:
        close = nearest(first, (entry.name for entry in existing.iterdir())) if existing else None
    except OSError:
        close = None
    meant = existing / close / where.relative_to(existing / first) if close else None
    fix = f"did you mean {pasteable(key, meant)}?" if meant else ""
    reason = f"{existing or '.'} has no {first or path}"
    return [problem(key, path, f"{what} that exists", fix, reason=reason)]


def wrong_pipeline(key: str, path: str) -> list[ConfigError]:
    """Return the problem of a path that should be a folder of a diffusers pipeline."""
    what = "a folder of a diffusers pipeline, with model_index.json"
    if (wrong := wrong_path(key, path, what)) or str(path).startswith("wandb:") or is_pipeline(path):
        return wrong
    fix = "`hf download NAME --local-dir FOLDER` fetches one from the Hub"
    return [problem(key, path, what, fix, reason="there is no model_index.json")]


def wrong_checkpoint(key: str, path: str) -> list[ConfigError]:
    """Return the problem of a path that should be a run folder or a checkpoint file of this project."""
    if (wrong := wrong_path(key, path, "a run folder or a checkpoint file")) or str(path).startswith("wandb:"):
        return wrong
    file = Path(path).expanduser()
    if file.is_file():
        folder, reason = file.parent, "it has no SHA-256 at its end: it is truncated, damaged or of another kind"
    else:
        file, folder, reason = file / LAST, (file / LAST).parent, f"it has no good {LAST}"
    if is_checkpoint(file):
        return []
    allowed = "a run folder or a checkpoint file of this project, with its SHA-256 at the end"
    good = max(filter(is_checkpoint, folder.glob("*.ckpt")), key=lambda each: each.stat().st_mtime_ns, default=None)
    fix = f"the newest that has one is beside it: {key}={good}" if good else f"there is none in {folder}"
    return [problem(key, path, allowed, fix, Exit.NO_GOOD_CHECKPOINT, reason=reason)]
