"""What evaluations leave: evaluation.json, a table, and the same in the run's W&B run."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consistency_models.app.folder import write_atomically
from consistency_models.app.loggers import wandb_mode
from consistency_models.data_spec import listed
from consistency_models.storage.small_files import read_json

log = logging.getLogger(__name__)

__all__ = ["publish", "result", "write"]

FIGURES = ("samples", "quality", "ode_error")  # of an evaluation; other pictures in its folder are not sent


def result(score: Mapping[str, Any], sampler: Any, seconds: float) -> dict[str, Any]:
    """An entry of evaluation.json: what was measured, and of images that were made how."""
    numbers = {key: score.get(key) for key in ("value", "spread", "best")}
    return {
        "metric": f"eval/{score['name']}",
        **{key: None if x is None or not math.isfinite(x) else x for key, x in numbers.items()},
        **{key: score[key] for key in ("n", "features", "reference", "reference_digest", "is_distance")},
        "sampler": type(sampler).__name__,
        "steps": len(sampler.sigmas),
        "sigmas": list(sampler.sigmas),
        "nfe": sampler.nfe,
        "seconds": round(seconds, 3),
    }


def write(folder: Path, content: dict[str, Any]) -> str:
    """evaluation.json and evaluation.md; returns the latter."""
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
    table = _table(content)
    write_atomically(folder / "evaluation.md", table)
    return table


def _table(content: dict[str, Any]) -> str:
    sets = content["sets"]
    names = content["class_names"]
    lines = [
        f"Checkpoint `{content['checkpoint']}`, weights {content['weights']}, seed {content['seed']}, "
        + (f"images {sets[0]}." if len(sets) == 1 else f"{len(sets)} sample sets: {', '.join(sets)}."),
        *(["", f"Classes: {listed(names)}."] if names else []),
        "",
        "| metric | value"
        + (" (mean ± deviation) | best of the sets" if len(sets) > 1 else "")
        + " | levels | network calls | seconds |",
        "|---|---" + ("|---" if len(sets) > 1 else "") + "|---|---|---|",
    ]
    for found in content["results"]:
        value = "not finite" if found["value"] is None else f"{found['value']:.4g}"
        value += "" if found["spread"] is None else f" ± {found['spread']:.2g}"
        best = "" if len(sets) == 1 else " | " if found["best"] is None else f" | {found['best']:.4g}"
        sigmas = [f"{sigma:.3g}" for sigma in found["sigmas"]]
        levels = " ".join(sigmas if len(sigmas) <= 4 else [*sigmas[:2], "…", sigmas[-1]])
        lines.append(f"| {found['metric']} | {value}{best} | {levels} | {found['nfe']} | {found['seconds']:.1f} |")
    empty = " |" * (4 if len(sets) > 1 else 3)
    lines += [f"| {name} (data against data) | {value:.4g} |{empty}" for name, value in content["floor"].items()]
    return "\n".join(lines) + "\n"


def publish(asked: str, trained: dict[str, Any], folder: Path, content: dict[str, Any]) -> None:
    """Numbers, table and figures into the W&B run that trained the model; offline where W&B cannot be reached.

    A run may be a stranger's: results go to an account that the run names only with `wandb=online`, or where the user's
    own WANDB_ENTITY is the same. With `wandb=auto` they are else logged offline.

    Nothing that goes wrong with W&B makes an evaluation fail: all of it is in the folder.

    Args:
        asked: auto, online, offline or disabled.
        trained: the configuration of the training.
        folder: evaluation/ of the run folder.
        content: of evaluation.json.
    """
    options = (trained.get("logger") or {}).get("wandb")
    identity = _wandb_id(folder.parent)
    if asked == "disabled" or not options or identity is None:
        return
    account = options.get("entity")
    foreign = asked == "auto" and account not in (None, os.environ.get("WANDB_ENTITY"))
    if (mode := wandb_mode("offline" if foreign else asked)) == "disabled":
        return
    if foreign:
        log.info("wandb: the run names the account %s; add wandb=online to send the results there", account)
    try:
        import wandb
    except ImportError:
        log.warning("wandb is not installed: the results are in %s only", folder)
        return
    try:
        run = wandb.init(
            dir=str(folder.parent),  # wandb 0.19 takes no Path
            project=options["project"],
            entity=account,
            id=identity,
            resume="allow",
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        columns = ["metric", "value", "spread", "best", "n", "sampler", "steps", "nfe", "seconds"]
        rows = [[found[column] for column in columns] for found in content["results"]]
        figures = {
            f"eval/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png")) if path.stem in FIGURES
        }
        run.log({**{row[0]: row[1] for row in rows if row[1] is not None}, **content["floor"], **figures})
        run.log({"eval/results": wandb.Table(columns, rows)})
        run.finish()
    except (wandb.Error, OSError) as error:
        log.warning("wandb: %s: the results are in %s only", error, folder)


def _wandb_id(folder: Path) -> str | None:
    """The W&B run of a run folder, None where it has none."""
    try:
        found = read_json(folder / "summary.json", folder)["wandb"]["id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None
