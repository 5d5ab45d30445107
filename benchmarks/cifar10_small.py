"""A teacher of class-conditional CIFAR-10 and a student of it, in hours on a CPU: images, distances, curve over time.

    python benchmarks/cifar10_small.py --root FOLDER --hours 2.5
    python benchmarks/cifar10_small.py --root FOLDER --hours 0.1 --n 400 --points 2 --out runs/report

Trains `experiment=cifar10_small`: the teacher for six tenths of the hours, and ECT from it for the rest. The number of
steps is the wall time over that of a step, measured first; it is saved in the folder of the runs. The same command
continues an interrupted training, and skips what is done. Scores --n images of the student in 1, 2 and 4 steps, of the
teacher in 18 (35 network calls), and real images, by the Fréchet distance to the 10,000 test images in the features of
EfficientNet: pip install -e ".[features]". Writes a picture, a curve and a table to --out. Validation, pictures and the
scores at the end are not part of the hours.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import measuring
import torch
from case import step_seconds

from consistency_models import load
from consistency_models.data import cifar10
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.grids import save_comparison
from consistency_models.evaluation.plots import save_curves

SHARE = {"teacher": 0.6, "student": 0.4}
MODEL = {"teacher": ["model=teacher"], "student": ["model=ect", "recipe.lr=3e-4"]}
STEPS = {"teacher": [18], "student": [1, 2, 4]}
PROBE = 6  # steps of a measurement
BATCH = "batch_size=16"  # of the sampler: 1.3 times faster on a CPU than 256


def command(*arguments: str) -> None:
    """Run a script of the repository, whose output is shown, and exit as it does if it fails or is interrupted."""
    if code := subprocess.run([sys.executable, *arguments], cwd=measuring.ROOT, env=os.environ).returncode:
        sys.exit(code)


def train(stage: str, folder: Path, args: argparse.Namespace) -> None:
    """Train a stage, or continue an interrupted training of it."""
    plan = folder / "plan.json"  # a resumed training has the same number of steps
    asked = {"hours": args.hours, "n": args.n, "overrides": args.overrides}
    if plan.exists() and (saved := {key: json.loads(plan.read_text())[key] for key in asked}) != asked:
        raise SystemExit(f"error: {folder} is of {saved}, not of {asked}; choose another --runs")
    if (folder / "DONE").exists():
        return
    common = ["experiment=cifar10_small", *MODEL[stage], f"data.root={args.root.absolute()}", *args.overrides]
    if not plan.exists():
        seconds = step_seconds(common, PROBE, time.perf_counter)
        steps = max(args.points, round(3600 * args.hours * SHARE[stage] / seconds))
        folder.mkdir(parents=True, exist_ok=True)
        planned = {"seconds": seconds, "steps": steps, "threads": torch.get_num_threads()}
        plan.write_text(json.dumps(planned | asked) + "\n")
    steps = json.loads(plan.read_text())["steps"]
    every = -(-steps // args.points)
    start = [] if stage == "teacher" else ["init=run", f"init.path={folder.parent / 'teacher'}"]
    resume = [f"ckpt_path={folder}"] if (folder / "checkpoints" / "last.ckpt").exists() else []
    fixed = [f"trainer.max_steps={steps}", f"callbacks.validation.every_n_steps={every}", f"evaluation.n={args.n // 4}"]
    fixed += [f"callbacks.checkpoint.every_n_steps={min(500, every)}", f"callbacks.samples.every_n_steps={steps}"]
    fixed += [f"evaluation.steps={STEPS[stage]}".replace(" ", ""), f"hydra.run.dir={folder}"]
    fixed += [f"evaluation.{BATCH}", "trainer=cpu", "logger=csv"]
    command("train.py", *common, *start, *fixed, *resume)


def metrics(folder: Path) -> list[dict[str, str]]:
    """Read the rows of a run's metrics."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def minutes_of_a_step(folder: Path) -> float:
    """Return the minutes of a step: the median of the training itself, or those of the plan if it logged none."""
    rows = [row for row in metrics(folder) if row.get("train/images_per_second")]
    if not rows:
        return json.loads((folder / "plan.json").read_text())["seconds"] / 60
    batch = float(rows[-1]["train/images_seen"]) / int(rows[-1]["step"])
    return batch / measuring.median([float(row["train/images_per_second"]) for row in rows]) / 60


def counted(n: int, noun: str) -> str:
    """Return "1 step", "2 steps"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def curve(stage: str, folder: Path, started: float) -> dict[str, list[tuple[float, float]]]:
    """Return metric -> (minutes of training, value) of a stage that started after `started` minutes."""
    minutes, curves = minutes_of_a_step(folder), {}
    for row in metrics(folder):
        for name, value in row.items():
            if name.startswith("val/fd") and value:
                label = f"{stage}, {counted(int(name.rpartition('_')[2].removesuffix('step')), 'step')}"
                curves.setdefault(label, []).append((started + int(row["step"]) * minutes, float(value)))
    return curves


def table(runs: Path, args: argparse.Namespace) -> list[str]:
    """Return the Markdown lines of the distances at the end, and their floor."""
    lines = ["| images | network calls | Fréchet distance, EfficientNet features |", "|---|---|---|"]
    for stage in ("student", "teacher"):
        content = json.loads((runs / stage / "evaluation" / "evaluation.json").read_text())
        for each in content["results"]:
            lines.append(f"| {stage}, {counted(each['steps'], 'step')} | {each['nfe']} | {each['value']:.1f} |")
    floor = next(iter(content["floor"].items()))
    return [*lines, f"| real: {floor[0].removeprefix('eval/')} | | {floor[1]:.1f} |"]


def picture(runs: Path, args: argparse.Namespace) -> None:
    """Save real images above the teacher's and the student's, the latter of the same noise and classes."""
    teacher, student = load(runs / "teacher"), load(runs / "student")
    real = cifar10(root=args.root).test
    labels = student.labels(torch.arange(20))
    rows = {"real": to_float(torch.stack([_nth(real, label, i // 10) for i, label in enumerate(labels.tolist())]))}
    rows["teacher, 35 calls"] = teacher.sample(20, steps=18)
    rows |= {f"student, {counted(steps, 'call')}": student.sample(20, steps=steps) for steps in (4, 2, 1)}
    save_comparison(args.out / "samples.png", rows, names=student.names(labels))


def _nth(images: Any, label: int, n: int) -> torch.Tensor:
    return images.images[(images.labels == label).nonzero()[n, 0]]


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, score, and write the report; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the images: as data.root of data=cifar10")
    parser.add_argument("--hours", type=float, default=2.5, help="wall time of both trainings")
    parser.add_argument("--n", type=int, default=2000, help="images of a score; a point of the curve has a quarter")
    parser.add_argument("--points", type=int, default=6, help="points of the curve of each training")
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10_small"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=measuring.ROOT / "docs/results/cifar10_small")
    parser.add_argument("--overrides", nargs="*", default=[], help="of both trainings: trainer.precision=bf16-mixed …")
    args = parser.parse_args(arguments)
    runs = args.runs.absolute()
    for stage in SHARE:
        train(stage, runs / stage, args)
        if not (runs / stage / "evaluation" / "evaluation.json").exists():
            steps = f"steps={STEPS[stage]}".replace(" ", "")
            command("eval.py", f"run={runs / stage}", steps, f"n={args.n}", BATCH, "device=cpu", "wandb=disabled")
    args.out.mkdir(parents=True, exist_ok=True)
    plans = {stage: json.loads((runs / stage / "plan.json").read_text()) for stage in SHARE}
    minutes = {stage: plan["steps"] * minutes_of_a_step(runs / stage) for stage, plan in plans.items()}
    starts = {"teacher": 0.0, "student": minutes["teacher"]}
    curves = {stage: [curve(stage, runs / stage, starts[stage])] for stage in SHARE}
    save_curves(args.out / "curve.png", curves, over="minutes of training")
    picture(runs, args)
    trained = [f"{stage} {plans[stage]['steps']} steps, {minutes[stage]:.0f} min" for stage in SHARE]
    machine = f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}"
    head = f"{date.today()}, {machine}: {'; '.join(trained)}."
    lines = [head, "", *table(runs, args)]
    (args.out / "table.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
