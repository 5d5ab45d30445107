"""Problems of a configuration, as messages with a fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from consistency_models.app.checks.rules import nearest
from consistency_models.errors import ConfigError, Exit, show

__all__ = ["ConfigErrors", "one_line", "problem", "unknown_key"]

HABITS = {
    "learning_rate": "lr",
    "num_workers": "workers",
    "num_gpus": "devices",
    "gpus": "devices",
    "max_epochs": "max_steps",
    "epochs": "max_steps",
    "iterations": "max_steps",
    "clip": "gradient_clip_val",
    "accumulate": "accumulate_grad_batches",
    "resume": "ckpt_path",
    "checkpoint": "ckpt_path",
    "path": "root",
    "dir": "root",
    "batch": "batch_size",
    "resolution": "image_size",
    "dataset": "data",
    "method": "model",
    "distance": "loss",
    "debug": "show_traceback",
}
"""Names in other projects -> names in this project."""


class ConfigErrors(ConfigError):
    """Several problems, one for each line. The exit code is that of the first problem.

    Args:
        problems: one or more.
    """

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        first = problems[0]
        super().__init__(first.key, first.value, first.allowed, first.fix, reason=first.reason)
        self.problems, self.code = list(problems), first.code
        self.args = ("\nerror: ".join(dict.fromkeys(map(str, problems))),)


def problem(
    key: str, value: Any, allowed: str, fix: str = "", code: Exit = Exit.BAD_INPUT, *, reason: str = ""
) -> ConfigError:
    """Return a problem with the value in the form of the command line."""
    key, value, allowed, fix, reason = (text.replace("\n", "\\n") for text in (key, show(value), allowed, fix, reason))
    error = ConfigError(key, value, allowed, fix, reason=reason)
    error.code = code
    return error


def unknown_key(key: str, value: Any, known: Iterable[str], groups: Iterable[str]) -> ConfigError:
    """Return the problem of an unknown key, with the keys of the same level and the most similar key.

    Args:
        key: the key.
        value: the value of the key.
        known: all existing keys, dotted.
        groups: names of the config groups.
    """
    known = list(known)
    parent, _, last = key.rpartition(".")
    while parent and not any(name.startswith(f"{parent}.") for name in known):
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    beside = sorted({name.removeprefix(prefix).split(".")[0] for name in known if name.startswith(prefix)})
    beside = [name for name in beside if name != "_target_"] or beside
    if parent:
        allowed = f"keys of {parent}: {', '.join(beside)}"
    else:
        single = sorted(name for name in known if "." not in name)
        allowed = f"groups ({', '.join(sorted(groups))}) and keys ({', '.join(single)})"
        beside = sorted({*beside, *groups})
    rest = key.removeprefix(prefix)
    below = [name.removeprefix(prefix) for name in known if name.startswith(prefix)] if "." in rest else beside
    close, similar = (prefix + name if (name := nearest(rest, below, cutoff)) else None for cutoff in (0.85, 0.6))
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(known)}
    same = [name for name in known if name.rpartition(".")[2] in (last, HABITS.get(last))]
    near = [name for name in same if name.startswith(prefix)]
    meant = close or next(iter(near), similar) or next(iter(same), elsewhere.get(nearest(last, elsewhere, 0.85)))
    return problem(key, value, allowed, f"did you mean {meant}={show(value)}?" if meant else "")


def one_line(error: BaseException | str) -> str:
    """Return the message of an error of another library in one line, without links."""
    text = str(error) or type(error).__name__
    cause = getattr(error, "__cause__", None)
    text = f"{text}: {cause}" if cause is not None and str(cause) not in text else text
    lines = [line.strip() for line in text.split("\nConfig search path")[0].splitlines()]
    return " ".join(
        line
        for line in lines
        if line and not line.startswith(("full_key:", "object_type=", "reference_type=", "See http"))
    )
