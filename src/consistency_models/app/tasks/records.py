"""Records of an evaluation: evaluation.json, a table, and a log in the W&B run."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from textwrap import shorten
from typing import Any

from consistency_models.app.wandb_mode import check_variables, wandb_mode
from consistency_models.data_spec import listed
from consistency_models.files import read_json, write_atomically

log = logging.getLogger(__name__)

__all__ = ["publish", "result", "write"]

FIGURES = ("samples", "quality", "ode_error")  # figures of an evaluation; other pictures of the folder are not logged


def result(score: Mapping[str, Any], sampler: Any, seconds: float) -> dict[str, Any]:
    """Return an entry of evaluation.json: a score, and the sampler of its images."""
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
    """Write evaluation.json and evaluation.md, and return the text of evaluation.md.

    An earlier evaluation with results that this one does not repeat is renamed to evaluation-1.json, -2.json …
    """
    _keep_earlier(folder, content)
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
    table = _table(content)
    write_atomically(folder / "evaluation.md", table)
    return table


def _keep_earlier(folder: Path, content: dict[str, Any]) -> None:
    try:
        earlier = read_json(folder / "evaluation.json", folder)
        is_repeated = _scored(earlier) <= _scored(content)
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError):  # damaged, or of another version
        is_repeated = False
    if is_repeated:
        return
    names = (f"evaluation-{i}" for i in count(1))
    name = next(name for name in names if not (folder / f"{name}.json").exists())
    for kind in ("json", "md"):
        with suppress(FileNotFoundError):
            (folder / f"evaluation.{kind}").rename(folder / f"{name}.{kind}")
    log.warning("the earlier evaluation has other results, and is now %s", folder / f"{name}.json")


def _scored(content: dict[str, Any]) -> set[tuple[Any, ...]]:
    """Return each result with what it is of: the weights, the images and the sampler."""
    of = (*(content[key] for key in ("digest", "weights", "precision", "seed")), tuple(content["sets"]))
    keys = ("metric", "sampler", "value")  # the value stands for the options of the sampler
    return {(*of, *(entry[key] for key in keys), tuple(entry["sigmas"])) for entry in content["results"]}


def _table(content: dict[str, Any]) -> str:
    sets = content["sets"]
    names = content["class_names"]
    lines = [
        f"Checkpoint `{content['checkpoint']}`, weights {content['weights']}, {content['precision']}, "
        f"seed {content['seed']}, "
        + (f"images {sets[0]}." if len(sets) == 1 else f"{len(sets)} sample sets: {', '.join(sets)}."),
        *(["", f"Classes: {listed(names)}."] if names else []),
        "",
        "| metric | value"
        + (" (mean ± deviation) | best of the sets" if len(sets) > 1 else "")
        + " | levels | network calls | seconds |",
        "|---|---" + ("|---" if len(sets) > 1 else "") + "|---|---|---|",
    ]
    for entry in content["results"]:
        value = "not finite" if entry["value"] is None else f"{entry['value']:.4g}"
        value += "" if entry["spread"] is None else f" ± {entry['spread']:.2g}"
        best = "" if len(sets) == 1 else " | " if entry["best"] is None else f" | {entry['best']:.4g}"
        sigmas = [f"{sigma:.3g}" for sigma in entry["sigmas"]]
        levels = " ".join(sigmas if len(sigmas) <= 4 else [*sigmas[:2], "…", sigmas[-1]])
        lines.append(f"| {entry['metric']} | {value}{best} | {levels} | {entry['nfe']} | {entry['seconds']:.1f} |")
    empty = " |" * (4 if len(sets) > 1 else 3)
    lines += [f"| {name} (data against data) | {value:.4g} |{empty}" for name, value in content["floor"].items()]
    return "\n".join(lines) + "\n"


def publish(mode: str, run_config: dict[str, Any], folder: Path, content: dict[str, Any]) -> None:
    """Log numbers, table and figures to the W&B run of the training; offline if W&B is not reachable.

    A run may be untrusted. Results are sent to an account named by the run only with `wandb=online`, or if WANDB_ENTITY
    of the user is the same account. Otherwise `wandb=auto` logs offline.

    Errors of W&B do not fail an evaluation, because the folder has all results.

    Args:
        mode: auto, online, offline or disabled.
        run_config: the configuration of the training.
        folder: evaluation/ of the run folder.
        content: content of evaluation.json.
    """
    options = (run_config.get("logger") or {}).get("wandb")
    identity = _wandb_id(folder.parent)
    if "disabled" in (mode, os.environ.get("WANDB_MODE")) or not options or identity is None:
        return
    account = options.get("entity")
    foreign = mode == "auto" and account not in (None, os.environ.get("WANDB_ENTITY"))
    try:
        import wandb
    except ImportError:
        log.warning("wandb is not installed: the results are in %s only", folder)
        return
    try:
        check_variables()
        mode = wandb_mode("offline" if foreign else mode)
        if foreign:
            log.info("wandb: the run names the account %s; add wandb=online to send the results there", account)
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
        rows = [[entry[column] for column in columns] for entry in content["results"]]
        figures = {
            f"eval/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png")) if path.stem in FIGURES
        }
        run.log({**{row[0]: row[1] for row in rows if row[1] is not None}, **content["floor"], **figures})
        run.log({"eval/results": wandb.Table(columns, rows)})
        run.finish()
    except (wandb.Error, OSError, ValueError) as error:
        text = shorten(str(error), 300)  # W&B checks the names of the run, which may be untrusted
        log.warning("wandb: %s: the results are in %s only", text, folder)


def _wandb_id(folder: Path) -> str | None:
    """Return the id of the W&B run of a run folder, None if there is no such run."""
    try:
        identity = read_json(folder / "summary.json", folder)["wandb"]["id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return identity if isinstance(identity, str) else None
