"""Quality against minutes of training, to choose batch, averages, width and initialisation by time instead of steps.

    python benchmarks/time_to_quality.py --minutes 2                                # digits, this machine
    python benchmarks/time_to_quality.py --minutes 8 --device cuda --overrides data=cifar10 data.root=FOLDER \\
        features=classifier network=ddpmpp --choices "model=ict" "model=cd teacher=run teacher.path=TEACHER"

A choice is a command line of `train.py`. The script first measures its speed and sets the number of steps to those that
fit into the time, so that schedules, decays and averages match the time. If a choice names TEACHER, half of the minutes
train a diffusion model, and the other half train the choice. The shown minutes are minutes of training, by the final
speed of the run; they do not include start-up, scoring and pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
from case import Case

from consistency_models.app.checks import Composer, check
from consistency_models.errors import ConfigError
from consistency_models.evaluation.plots import save_curves

CHOICES = [
    "model=ict",
    "model=ict data.batch_size=32",
    "model=ict network.model_channels=64",
    "model=ict recipe.ema=0.98",
    "model=ict recipe.s1=40",
    "model=cd teacher=run teacher.path=TEACHER",
    "model=ect init=run init.path=TEACHER",
]
COLUMNS = {
    "choice": "{choice}",
    "steps": "{step}",
    "minutes": "{minutes:.2f}",
    "metric": "{metric}",
    "1 step": "{one:.4g}",
    "2 steps": "{two:.4g}",
    "floor": "{floor:.4g}",
}


def trained(overrides: list[str], minutes: float, points: int, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Train for `minutes` minutes, and return one row for each validation."""
    accelerator = f"trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}"
    case = Case([*args.overrides, *overrides], args.device)
    timed = case.timed(args.warm, args.probe)
    steps = max(points, round(60 * minutes / measuring.median([sum(step.values()) for step in timed])))
    between = case.config["callbacks"]["metrics"][
        "every_n_steps"
    ]  # a validation between two rows does not count in the time of a row
    every_n_steps = -(-steps // (points * between)) * between
    fixed = [accelerator, f"trainer.max_steps={steps}", f"callbacks.validation.every_n_steps={every_n_steps}"]
    fixed += ["logger=csv", f"callbacks.samples.every_n_steps={steps}", f"hydra.run.dir={folder}"]
    command = [sys.executable, str(measuring.ROOT / "train.py"), *args.overrides, *overrides, *fixed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    summary = json.loads((folder / "summary.json").read_text())
    floor = next((value for key, value in summary["floor"].items() if "fd" in key), float("nan"))
    step_minutes = case.batch / summary["images_per_second"] / 60
    rows = []
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            scores = {name: float(row[name]) for name in row if name.startswith("val/fd") and row[name]}
            name = next((name for name in scores if name.endswith("_1step")), None)
            if name is not None:
                step = int(row["step"])
                two = scores.get(name.replace("_1step", "_2step"), float("nan"))
                metric = name.removeprefix("val/").removesuffix("_1step")
                values = {"one": scores[name], "two": two, "floor": floor}
                rows.append({"metric": metric, "step": step, "minutes": step * step_minutes, **values})
    return rows


def measure(choice: str, teacher: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one choice; a teacher and its choice share the minutes."""
    needs_teacher = "TEACHER" in choice
    with tempfile.TemporaryDirectory() as folder:
        overrides = shlex.split(choice.replace("TEACHER", str(teacher)))
        minutes = args.minutes / 2 if needs_teacher else args.minutes
        rows = trained(overrides, minutes, args.points, Path(folder) / "run", args)
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.]+", "_", choice.replace("TEACHER", "teacher")) + ".png"
            shutil.copy(Path(folder) / "run" / "samples" / "final.png", args.pictures / name)
    teacher_minutes = args.minutes / 2 if needs_teacher else 0
    return [{"choice": choice, **row, "minutes": teacher_minutes + row["minutes"]} for row in rows]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes of training for each choice")
    parser.add_argument("--points", type=int, default=3, help="validations of each training")
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="command lines of train.py")
    parser.add_argument("--overrides", nargs="*", default=[], help="overrides of every choice")
    parser.add_argument("--pictures", type=Path, help="folder for the curves and the final samples of each choice")
    parser.add_argument("--warm", type=int, default=3, help="steps before the measurement of the speed")
    parser.add_argument("--probe", type=int, default=10, help="steps of the measurement of the speed")
    args = parser.parse_args(arguments)
    results = measuring.machine(args) | {"rows": []}
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher"
        if any("TEACHER" in choice for choice in args.choices):
            trained(["model=teacher"], args.minutes / 2, 1, teacher, args)
        composer = Composer("train", measuring.CONF)
        for choice in args.choices:  # checks all choices before the first measurement; the teacher exists by now
            try:
                check("train", composer, [*args.overrides, *shlex.split(choice.replace("TEACHER", str(teacher)))])
            except ConfigError as error:
                parser.error(str(error))
        for choice in args.choices:
            results["rows"] += measure(choice, teacher, args)
    if args.pictures:
        curves: dict[str, list[dict[str, list[tuple[float, float]]]]] = {}
        for row in results["rows"]:
            curve = curves.setdefault(row["choice"], [{}])[0]
            for steps, value in (("1 step", row["one"]), ("2 steps", row["two"])):
                curve.setdefault(f"{row['metric']}, {steps}", []).append((row["minutes"], value))
        save_curves(args.pictures / "curves.png", curves, over="minutes of training, including the teacher")
    measuring.report(results, COLUMNS, args.json)
    return results


if __name__ == "__main__":
    main()
