"""Quality against minutes of one core: all methods on digits, or any command lines of `train.py`.

    python benchmarks/time_to_quality.py                                    # 1, 2 and 4 minutes, three seeds
    python benchmarks/time_to_quality.py --minutes 2 --seeds 0 --jobs 2     # a part of it
    python benchmarks/time_to_quality.py --report                           # tables and curves of all results so far
    python benchmarks/time_to_quality.py --folder FOLDER --choices "model=ict" "model=ict data.batch_size=32"

A choice is a command line of `train.py`. A word in capitals stands for the run folder of another choice (`STAGES`),
which takes the first half of the minutes.

The budget of a choice is a number of steps: the minutes over the CPU seconds of a step with one thread. Therefore the
schedules match the budget, and results do not depend on other processes of the machine. The seconds of a step are
measured once and saved in calibration.json: the minimum over several short trainings of the choice, which alternate
with those of the other choices. Start-up, validation and pictures do not count. On a GPU the seconds are wall seconds.

Each validation of a run is one line of results.jsonl. A further call of the script trains what is missing there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

import measuring
from case import Case, StepClock
from quality_report import report

from consistency_models.app.checks import Composer, check
from consistency_models.errors import ConfigError

STAGES = {
    "TEACHER": "model=teacher",
    "FLOW": "model=teacher preconditioning=flow",
    "ECT": "model=ect init=run init.path=TEACHER",
}
DISTIL = "teacher=run teacher.path=TEACHER"
CHOICES = [
    "model=teacher",
    "model=ict",
    "model=ict recipe.lr=1e-3 recipe.decay=0.3 recipe.s1=80",  # the rate of the other methods
    "model=ct",
    f"model=cd {DISTIL}",
    f"model=mcm model.segments=1 {DISTIL}",
    f"model=mcm model.segments=2 {DISTIL}",
    f"model=dcm {DISTIL}",
    f"model=tract {DISTIL}",
    f"model=cmt {DISTIL}",
    STAGES["ECT"],
    "model=tcm teacher=run teacher.path=ECT",
    "model=sct preconditioning=edm init=run init.path=TEACHER",
    f"model=scd preconditioning=edm {DISTIL}",
    "model=meanflow",
    "model=alphaflow",
    "model=ayf init=teacher teacher=run teacher.path=FLOW",
    "model=facm init=teacher teacher=run teacher.path=FLOW",
    "model=imm",
    "model=shortcut",
]
RESULTS = measuring.ROOT / "docs" / "results" / "time_to_quality"
Key = tuple[str, float, int]  # choice, minutes, seed


def stages(choice: str) -> list[str]:
    """Return the names of the stages that a choice needs."""
    return [name for name in STAGES if re.search(rf"\b{name}\b", choice)]


def with_stages(choice: str) -> list[str]:
    """Return a choice and all choices that train before it."""
    return [choice, *(each for name in stages(choice) for each in with_stages(STAGES[name]))]


def own_minutes(choice: str, minutes: float) -> float:
    """Return the minutes of the training of the choice, without those of its stages."""
    return minutes / 2 if stages(choice) else minutes


def calibrate(choices: Sequence[str], args: argparse.Namespace) -> dict[str, float]:
    """Measure the seconds of a step of each choice. Untrained networks take the places of its stages."""

    def read() -> float:
        """Read the CPU time of this process, or the wall time of a GPU."""
        measuring.wait(args.device)
        return time.process_time() if args.device == "cpu" else time.perf_counter()

    def train(case: Case) -> float:
        clock = StepClock(read)
        case.train(args.probe, clock)
        return statistics.mean(clock.seconds())

    runs = {}
    for choice in choices:
        names = "|".join(["=run", *STAGES])
        overrides = [override for override in shlex.split(choice) if not re.search(rf"({names})$", override)]
        # A whole training but for its last step, so that costs that change during a training have their mean.
        case = Case([*args.overrides, *overrides, f"trainer.max_steps={args.probe + 1}"], args.device)
        runs[choice] = lambda case=case: train(case)
    return {choice: min(seconds) for choice, seconds in measuring.interleaved(runs, args.rounds).items()}


def calibration(choices: Sequence[str], args: argparse.Namespace) -> dict[str, float]:
    """Read the seconds of a step of each choice; measure and save those that are missing."""
    file = args.folder / "calibration.json"
    saved = json.loads(file.read_text()) if file.exists() else {"overrides": args.overrides, "seconds": {}}
    if saved["overrides"] != args.overrides:
        raise ValueError(f"--overrides: {file} was measured with {saved['overrides']}; use another --folder")
    if missing := [choice for choice in choices if choice not in saved["seconds"]]:
        saved |= {name: value for name, value in measuring.machine(args).items() if name != "command"}
        saved["seconds"] |= calibrate(missing, args)
        args.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(saved, indent=1) + "\n")
    return saved["seconds"]


def train(key: Key, seconds: float, before: dict[str, Future[Path]], args: argparse.Namespace) -> Path:
    """Train one run after its stages, unless the folder has the finished run, and return the folder."""
    choice, minutes, seed = key
    folder = args.runs.absolute() / re.sub(r"[^\w.]+", "_", choice) / f"{minutes:g}" / str(seed)
    if (folder / "DONE").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted run
    for name, future in before.items():
        choice = re.sub(rf"\b{name}\b", str(future.result()), choice)
    steps = max(args.points, round(60 * own_minutes(key[0], minutes) / seconds))
    every_n_steps = -(-steps // args.points)
    fixed = [f"trainer.max_steps={steps}", f"callbacks.validation.every_n_steps={every_n_steps}", f"seed={seed}"]
    fixed += [f"trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}", f"hydra.run.dir={folder}"]
    fixed += ["logger=csv", f"callbacks.samples.every_n_steps={steps}"]
    command = [sys.executable, str(measuring.ROOT / "train.py"), *args.overrides, *shlex.split(choice), *fixed]
    threads = {"OMP_NUM_THREADS": "1"} if args.device == "cpu" else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return folder


def measured(key: Key, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each validation of a run."""
    choice, minutes, seed = key
    summary, rows = json.loads((folder / "summary.json").read_text()), []
    fixed = {"choice": choice, "minutes": minutes, "seed": seed, "of_steps": summary["max_steps"]}
    fixed["floor"] = next(value for name, value in summary["floor"].items() if "fd" in name)
    own = own_minutes(choice, minutes)
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            named = {re.fullmatch(r"val/(fd\w+)_(\d+)step", name): value for name, value in row.items() if value}
            if scores := {match[2]: float(value) for match, value in named.items() if match}:
                metric = next(match[1] for match in named if match)
                step = int(row["step"])
                at = {"step": step, "after_minutes": minutes - own * (1 - step / summary["max_steps"])}
                rows.append(fixed | at | {"metric": metric, "fd": scores, "date": date.today().isoformat()})
    return rows


def train_missing(seconds: dict[str, float], args: argparse.Namespace) -> None:
    """Train all runs that have no results, and append their results to results.jsonl."""
    file, futures = args.folder / "results.jsonl", {}
    known = {(row["choice"], row["minutes"], row["seed"]) for row in read(args.folder)}

    def submit(choice: str, minutes: float, seed: int) -> Future[Path]:
        key = (choice, minutes, seed)
        if key not in futures:  # a run waits for its stages, which start earlier
            before = {name: submit(STAGES[name], minutes / 2, seed) for name in stages(choice)}
            futures[key] = pool.submit(train, key, seconds[choice], before, args)
        return futures[key]

    with ThreadPoolExecutor(args.jobs) as pool:
        for key in [(c, minutes, seed) for seed in args.seeds for minutes in args.minutes for c in args.choices]:
            if key not in known:
                submit(*key)
        keys = {future: key for key, future in futures.items()}
        for number, future in enumerate(as_completed(keys), start=1):
            if (key := keys[future]) not in known:
                with open(file, "a") as lines:
                    lines.writelines(json.dumps(row) + "\n" for row in measured(key, future.result()))
            print(f"{number} of {len(keys)}: {key}", flush=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """Read all results so far."""
    file = folder / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, and print the tables; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="command lines of train.py")
    parser.add_argument("--overrides", nargs="*", help="of all choices and stages; default: those of the calibration")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder of calibration, results and curves")
    parser.add_argument("--runs", type=Path, default=Path("runs/time_to_quality"), help="folder of the runs")
    parser.add_argument("--points", type=int, default=3, help="validations of each training")
    parser.add_argument("--probe", type=int, default=10, help="steps of each training of the calibration")
    parser.add_argument("--rounds", type=int, default=5, help="trainings of the calibration; the fastest counts")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=1, help="parallel trainings")
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args(arguments)
    if args.overrides is None:
        measured = args.folder / "calibration.json"
        args.overrides = json.loads(measured.read_text())["overrides"] if measured.exists() else []
    composer = Composer("train", measuring.CONF)
    for choice in args.choices:
        try:
            if not stages(choice):  # the folders of other choices do not exist yet
                check("train", composer, [*args.overrides, *shlex.split(choice)])
        except ConfigError as error:
            parser.error(str(error))
    if not args.report:
        args.threads = 1
        needed = dict.fromkeys(each for choice in args.choices for each in with_stages(choice))
        train_missing(calibration(list(needed), args), args)
    rows = [row for row in read(args.folder) if row["choice"] in args.choices and row["minutes"] in args.minutes]
    print(report(args.folder, rows))


if __name__ == "__main__":
    main()
