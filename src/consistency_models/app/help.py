"""The text of --help: commands, groups with their options, and settings of the primary configuration.

The descriptions are the comments of conf/train.yaml and conf/eval.yaml.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from consistency_models.app.checks.composing import Composer
from consistency_models.app.commands import command

__all__ = ["help_of"]

USAGE = {
    "train": """\
Train, distil and compare consistency models.

    {train}                                          improved consistency training on digits: minutes on a CPU
    {train} model=ict data=cifar10 data.root=FOLDER  another method or data set, as for all groups below
    {train} trainer.max_steps=500 optimizer.lr=1e-3  single settings
    {train} model=ict,ct seed=0,1 --multirun         one run for each combination
    {train} ckpt_path=last                           resume this model's newest unfinished run (or FOLDER, or FILE)
    {train} debug=default                            test: ten steps on the CPU
""",
    "eval": """\
Sample from a finished run, score the images, and write both to the run's evaluation/ folder.

    {eval} run=FOLDER 'steps=[1,2,4]'     a run folder or a checkpoint file; step counts
    {eval} run=FOLDER weights=model n=500 the weights instead of their average; number of images
    {eval} run=FILE.pkl data=cifar10 data.root=FOLDER features=classifier   an official checkpoint (.pkl, .pt)
""",
}
FLAGS = """\
Flags: --multirun runs every combination of a,b,c; --cfg job prints the configuration; --info defaults lists its files
in order; --config-dir=FOLDER adds your own configurations; --hydra-help lists all flags.
docs/configuration.md explains the origin of each number."""
GROUP = re.compile(r"^  - (?:optional )?(\w+): ([^#\n]*?) *# (.+)$", re.MULTILINE)
SETTING = re.compile(r"^(\w+): ([^#\n ][^#\n]*?) *# (.+)$", re.MULTILINE)
INDENT = " " * 19


def help_of(task: str, conf_dir: Path, config_dir: str | None = None) -> str:
    """Return the --help text of `task`, "train" or "eval".

    Args:
        task: name of the primary configuration, `conf_dir/TASK.yaml`.
        conf_dir: the folder of configurations.
        config_dir: the folder of --config-dir, if any; its options are listed as well.
    """
    text = (conf_dir / f"{task}.yaml").read_text(encoding="utf-8")
    composer = Composer(task, conf_dir, config_dir)
    lines = [USAGE[task].format(train=command("train"), eval=command("eval"))]
    lines += ["Groups (group=option). If two groups set the same key, the lower one wins:", ""]
    for group, default, meaning in GROUP.findall(text):
        lines.append(f"  {group:<16} {meaning}{_default(default)}")
        options = ", ".join(composer.options(group))
        lines.append(textwrap.fill(options, 120, initial_indent=INDENT, subsequent_indent=INDENT))
    lines += ["", "Settings (key=value) outside the groups:", ""]
    lines += [f"  {key:<16} {meaning}{_default(value)}" for key, value, meaning in SETTING.findall(text)]
    return "\n".join([*lines, "", FLAGS])


def _default(value: str) -> str:
    return "" if value in ("null", "???") or "$" in value else f"; default {value}"
