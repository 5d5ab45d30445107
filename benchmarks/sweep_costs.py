"""The cost of the sweeps of digits: runs and minutes of one core, from the measured seconds of a step."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence

import measuring
from case import step_seconds

from consistency_models.app.checks import Composer

__all__ = ["commands", "cost_table"]

FREE = re.compile(r"\+*(seed|loss|weighting|schedule|recipe|curriculum|model\.target_ema|model\.segments)\b")
"""Overrides that change no step's cost. MCM's segments only divide the same levels."""

REST = 6.0  # CPU seconds of a run outside its steps: two validations, pictures, building; measured on digits
PROBE = 12  # steps of a measurement


def commands(sweep: str, size: str) -> list[list[str]]:
    """Return the overrides of each command of a size that the comments of a sweep name; small has one without them."""
    text = (measuring.ROOT / f"sweeps/{sweep}.yaml").read_text()
    named = [line.split() for line in re.findall(r"python train\.py (.*?)(?: \(.*)?$", text, re.MULTILINE)]
    if size == "small":
        return [[f"sweeps={sweep}"], *(line for line in named if not re.search("sweep_size|loss=", " ".join(line)))]
    return [line for line in named if f"sweep_size={size}" in line]


def cost_table(sweeps: Sequence[str], teacher: str) -> Iterator[str]:
    """Yield the Markdown lines of the cost of each sweep of digits, and the sum.

    Args:
        sweeps: names of the sweeps.
        teacher: the run that stands for RUN in the commands.
    """
    composer, seconds = Composer("train", measuring.CONF), {}
    total_runs, total_minutes = 0, 0.0
    yield from ("| sweep | runs | longest run, minutes | minutes of one core |", "|---|---|---|---|")
    for sweep in sweeps:
        minutes = []
        for words in commands(sweep, "digits"):
            overrides = composer.parse([re.sub(r"\bRUN$", teacher, word) for word in words])
            base = composer.compose([each for each in overrides if not each.is_sweep_override()])
            for job in composer.cells(overrides, base):
                lines = [each.input_line for each in job if not each.is_hydra_override()]
                key = tuple(line for line in lines if not FREE.match(line))
                if key not in seconds:
                    seconds[key] = step_seconds(lines, PROBE, time.process_time)
                minutes.append((composer.compose(job).trainer.max_steps * seconds[key] + REST) / 60)
        total_runs, total_minutes = total_runs + len(minutes), total_minutes + sum(minutes)
        yield f"| {sweep} | {len(minutes)} | {max(minutes):.1f} | {sum(minutes):.0f} |"
    yield f"| all | {total_runs} | | {total_minutes:.0f} |"
    yield from ("", f"{total_minutes / 120:.1f} hours on two cores, one run on each.")
