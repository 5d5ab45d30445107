"""`ckpt_path=last` and `ckpt_path=FOLDER`: the command line of the resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import OmegaConf

from consistency_models.app.checks.composing import Composer
from consistency_models.app.checks.files import has_checkpoint
from consistency_models.app.checks.problems import ConfigErrors, one_line, problem
from consistency_models.app.checks.strangers import check_links, harmless
from consistency_models.app.folder import RunFolder, newest_unfinished
from consistency_models.errors import ConfigError, Exit
from consistency_models.files import read_yaml

__all__ = ["continued"]

LIMITS = ("trainer.max_steps", "trainer.max_images", "data.batch_size")


def continued(composer: Composer, overrides: Sequence[Override]) -> list[Override] | None:
    """Return the overrides that resume a run in its folder, or None if the command resumes no run.

    The order is: overrides of the run, overrides of this command, folder of the run.

    Raises:
        ConfigError: there is no such run, the run has no checkpoint (exit code 4), the run is done, or hydra.run.dir is
            another folder.
    """
    asked = next((o.value() for o in reversed(overrides) if o.key_or_group == "ckpt_path" and not o.is_delete()), None)
    given = next((o.value() for o in reversed(overrides) if o.key_or_group == "hydra.run.dir"), None)
    typed = [o for o in overrides if o.key_or_group not in ("ckpt_path", "hydra.run.dir", "hydra.mode")]
    if asked == "last":
        folder = _last(composer, [o for o in overrides if o.key_or_group != "ckpt_path"], given)
    elif isinstance(asked, str) and Path(asked).expanduser().is_dir():
        folder = Path(asked).expanduser()
        if given is not None and Path(str(given)).resolve() != folder.resolve():
            allowed, reason = f"left out with ckpt_path={asked}", "the run resumes in its own folder"
            fix = "set ckpt_path to a file to start a new run from it"
            raise problem("hydra.run.dir", given, allowed, fix, reason=reason)
    else:
        return None
    folder = folder.absolute()
    started, trained = _read(folder, "overrides.yaml", list), _read(folder, "config.yaml", dict)
    if not has_checkpoint(folder):
        allowed, reason = "a run folder with a good checkpoint", "this one has none in checkpoints/"
        fix = "start a new run without ckpt_path"
        raise problem("ckpt_path", folder, allowed, fix, Exit.NO_GOOD_CHECKPOINT, reason=reason)
    check_links("ckpt_path", folder)
    before = harmless(composer, folder, started, [*(o.key_or_group for o in typed), "ckpt_path"])
    root = _at(trained, "data", "root")
    if isinstance(root, str) and Path(root).is_absolute() and "$" not in root:  # the override may be relative
        absolute = composer.parse([f"data.root={QuotedString(root, Quote.single).with_quotes()}"])[0]
        before = [absolute if override.key_or_group == "data.root" else override for override in before]
    quoted = QuotedString(str(folder), Quote.single).with_quotes()
    own = composer.parse([f"ckpt_path={quoted}", f"hydra.run.dir={quoted}", "hydra.mode=RUN"])
    merged = [*before, *typed, *own]
    try:
        config = composer.compose(merged)
    except ConfigErrors as error:
        raise ConfigErrors([_of_run(composer, one, before, folder) for one in error.problems]) from error
    limits = {key: OmegaConf.select(config, key) for key in LIMITS}
    limits_before = {key: _at(trained, *key.split(".")) for key in LIMITS}
    if config.get("train", True) and RunFolder(folder).state == "DONE" and limits == limits_before:
        steps = limits["trainer.max_steps"]
        reason = f"this one is DONE (trainer.max_steps={steps})"
        fix = f"continue with, for instance, trainer.max_steps={2 * steps}"
        raise problem("ckpt_path", folder, "a run with steps left", fix, reason=reason)
    return merged


def _of_run(composer: Composer, error: ConfigError, before: Sequence[Override], folder: Path) -> ConfigError:
    """Return the problem with its origin, if an override of the run chooses an option that is not found."""
    of_run = any(override.get_key_element() == error.key for override in before)
    if not (of_run and composer.repository.group_exists(error.key)):
        return error
    fix = "repeat the --config-dir, or hydra.searchpath, that the run was started with"
    return problem(error.key, error.value, error.allowed, fix, error.code, reason=f"{folder}/overrides.yaml has it")


def _last(composer: Composer, overrides: list[Override], given: str | None) -> Path:
    config = composer.compose(overrides)
    runs, name = Path(config.paths.runs), str(config.name)
    if given is not None:
        if not (Path(given) / "config.yaml").is_file():
            allowed, reason = "last only for a folder with a run", f"hydra.run.dir={given} has none"
            raise problem("ckpt_path", "last", allowed, "leave ckpt_path out the first time", reason=reason)
        return Path(given)
    folder = newest_unfinished(runs, name)
    if folder is None:
        others = sorted({path.parents[1].name for path in runs.glob("*/*/config.yaml")} - {name})
        unfinished = [other for other in others if newest_unfinished(runs, other)]
        fix = "start one without ckpt_path, or name the folder of a run by ckpt_path=FOLDER"
        if unfinished:
            fix = f"unfinished runs have name={', '.join(unfinished)}"
        allowed, reason = "last only where a run is unfinished and has a checkpoint", f"none is in {runs / name}/*/"
        raise problem("ckpt_path", "last", allowed, fix, reason=reason)
    return folder


def _at(config: dict[str, Any], group: str, key: str) -> Any:
    """Return a value of an untrusted configuration without resolving interpolations."""
    settings = config.get(group)
    return settings.get(key) if isinstance(settings, dict) else None


def _read(folder: Path, name: str, kind: type) -> Any:
    """Read a YAML file that every run folder has.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        content = read_yaml(folder / name, folder)
    except (OSError, ValueError) as error:
        inner = folder.name == "checkpoints" and (folder.parent / name).is_file()
        fix, allowed = f"did you mean ckpt_path={folder.parent}?", "a run folder (with config.yaml and overrides.yaml)"
        raise problem("ckpt_path", folder, allowed, fix if inner else "", reason=one_line(error)) from error
    if not isinstance(content, kind):
        raise problem("ckpt_path", folder, "a run folder", reason=f"its {name} is damaged")
    return content
