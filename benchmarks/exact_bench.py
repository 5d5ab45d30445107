"""`python benchmarks/exact_bench.py`: every method on data whose probability-flow ODE is known.

Trains the methods of `METHODS` on mixtures of Gaussians in 2 and 16 dimensions for the same number of steps, over
several seeds. Measures the distance to the exact solution, and the distance of the samples to the data. Teachers are
exact, so that all error comes from the method. Writes exact.json, exact.md and a picture of each mixture.

A second call with the same folder continues: finished runs are measured again, but not trained again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from datetime import date
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hydra
import torch
from exact_report import picture, solver, table
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from consistency_models.app.build import instantiate
from consistency_models.app.folder import RunFolder
from consistency_models.app.run import run_job
from consistency_models.data import Mixture, Slot
from consistency_models.errors import Exit
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.ode_error import ODEError
from consistency_models.files import write_atomically
from consistency_models.random import BatchRandom
from consistency_models.storage.loading import load

__all__ = ["FIRST_STAGE", "METHODS", "Costs", "main"]

ROOT = Path(os.environ.get("PROJECT_ROOT", Path(__file__).parents[1]))
DATA = {"mixture": 2, "mixture_16d": 16}
SMALL = "trainer=cpu logger=csv callbacks.samples=null callbacks.validation=null callbacks.progress=null"
METHODS = {  # with the recipes of data=mixture; Heun, since 16 steps of a segmented grid are too few for DDIM
    "teacher": "model=teacher",
    "CT": "model=ct",
    "CT, N(k) up to 21": "model=ct curriculum.s1=20",
    "iCT": "model=ict",
    "CD": "model=cd teacher=exact",
    **{f"MCM, S = {S}": f"model=mcm model.segments={S} solver=heun teacher=exact" for S in (1, 2, 4, 8)},
    "Direct CM": "model=dcm teacher=exact",
    "TRACT": "model=tract teacher=exact",
    "CMT": "model=cmt teacher=exact",
    "ECT": "model=ect",
    "TCM": "model=tcm teacher=run teacher.path=FIRST_STAGE",
    "sCT": "model=sct",
    "sCD": "model=scd teacher=exact",
    "MeanFlow": "model=meanflow",
    "α-Flow": "model=alphaflow",
    "AYF": "model=ayf teacher=exact",
    "FACM": "model=facm",
    "IMM": "model=imm",
    "Shortcut": "model=shortcut",
}
FIRST_STAGE = {"TCM": "ECT"}  # method that continues a run of another method, of the same seed and number of steps


class Costs(Callback):
    """Counts the images in all calls of the network and of its target copy during training, and the CPU seconds."""

    def __init__(self) -> None:
        self.called, self.trained = 0, 0
        self.began: float | None = None
        self.ended = 0.0

    def on_fit_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Register hooks that count the images of every call."""

        def count(module: torch.nn.Module, arguments: tuple) -> None:
            self.called += len(arguments[0])

        for network in {method.model.network, method.target_model.network}:
            network.register_forward_pre_hook(count)

    def on_train_batch_start(self, trainer: Trainer, method: LightningModule, batch, batch_index: int) -> None:
        """Start the clock at the first step. The clock is that of the process, which waiting does not advance."""
        if self.began is None:
            self.began = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, method: LightningModule, outputs, batch, batch_index: int) -> None:
        """Count the images of the step, and read the clock."""
        self.trained += len(batch)
        self.ended = time.process_time()

    def summary(self) -> dict[str, float]:
        """Return the network calls per training image, and the CPU seconds of all steps."""
        return {"network_calls_per_image": self.called / self.trained, "train_cpu_seconds": self.ended - self.began}


def configure(folder: Path, data: str, method: str, steps: int, seed: int, first: Path | None) -> dict[str, Any]:
    """Compose and resolve the configuration of one run."""
    lines = f"data=mixture data.name={data} data.source.dimension={DATA[data]} {SMALL} seed={seed}"
    lines += " " + METHODS[method].replace("FIRST_STAGE", f"'{first}'")
    lines += f" trainer.max_steps={steps} callbacks.checkpoint.every_n_steps={steps} paths.output='{folder}'"
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", lines.split()), resolve=True)
    config["callbacks"]["calls"] = {"_target_": f"{Costs.__module__}.Costs"}
    return config


@lru_cache
def truth(data: str, points: int) -> tuple[Mixture, Evaluation, ODEError]:
    """Build the data, the evaluation of samples, and the measure of ODE errors."""
    source = Mixture(DATA[data])
    evaluation = instantiate(OmegaConf.to_container(OmegaConf.load(ROOT / "conf/features/identity.yaml")))(source)
    return source, evaluation, ODEError(lambda x, s, to, labels: source.consistency(x, s, to), source.images[:points])


def scores(data: str, points: int, images: torch.Tensor) -> dict[str, float]:
    """Compute the distances of samples to the data."""
    return {score.metric: score.value for score in truth(data, points)[1].scores(images, None, 1)}


def train(folder: Path, config: dict[str, Any], steps: int) -> None:
    """Train one run, unless the folder has a finished run of as many steps."""
    summary = folder / "summary.json"
    if RunFolder(folder).state == "DONE" and json.loads(summary.read_text())["max_steps"] == steps:
        return
    if folder.exists():
        shutil.rmtree(folder)
    RunFolder(folder).write_config(config, [])
    with redirect_stdout(io.StringIO()):  # hides the final messages of the run
        code, _ = run_job(config, folder)
    if code != Exit.DONE:
        raise RuntimeError(f"{folder} ended with {code.name}")


def run(
    folder: Path, data: str, method: str, steps: int, seed: int, points: int, first: Path | None = None
) -> list[dict[str, Any]]:
    """Train and measure one run, and return a row for each number of sampling steps.

    Args:
        first: folder of the finished first stage of a method of `FIRST_STAGE`, whose CPU seconds are added.
    """
    config = configure(folder, data, method, steps, seed, first)
    train(folder, config, steps)
    summary, generator, rows = json.loads((folder / "summary.json").read_text()), load(folder), []
    costs = {key: summary[key] for key in ("network_calls_per_image", "teacher_calls_per_image", "train_cpu_seconds")}
    if first is not None:
        costs["train_cpu_seconds"] += json.loads((first / "summary.json").read_text())["train_cpu_seconds"]
    for count in config["evaluation"]["steps"]:
        images = generator.sample(2 * points, steps=count, seed=seed, batch_size=2 * points)
        row = {"data": data, "method": method, "steps": count, "seed": seed}
        row |= {"nfe": generator.make_sampler(steps=count).nfe} | costs | scores(data, points, images)
        if not rows:  # with more steps a consistency model adds noise, and its output is no solution of the ODE
            row |= truth(data, points)[2](solver(generator, count)).summary()
        rows.append(row)
    return rows


def floor(data: str, seed: int, points: int) -> dict[str, Any]:
    """Score fresh data against the data, the lower bound of the distances of samples."""
    fresh = truth(data, points)[0][Slot(BatchRandom(seed, 0, 2 * points, slice(0, 2 * points)), None)]
    return {"data": data, "method": "fresh data", "steps": 0, "seed": seed} | scores(data, points, fresh.images)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; see `--help`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python benchmarks/exact_bench.py", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each method, of 256 points each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=2000, help="points of the ODE errors; twice as many samples")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=cores, help="parallel trainings, one core each")
    parser.add_argument("--folder", type=Path, default=Path("runs/exact_bench"))
    args, started = parser.parse_args(arguments), time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes of the pool
    torch.set_num_threads(1)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    order = [(data, method, seed) for data in args.data for method in args.methods for seed in seeds]
    folders = {key: args.folder.absolute() / key[0] / re.sub(r"\W+", "_", key[1]) / str(key[2]) for key in order}
    for method in args.methods:
        if FIRST_STAGE.get(method, method) not in args.methods:
            parser.error(f"--methods: {method} continues runs of {FIRST_STAGE[method]}; add {FIRST_STAGE[method]}")
    results = {}
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for second_stage in (False, True):
            tasks = {}
            for key in sorted(order, key=lambda key: key[2]):  # all methods of the first seed first
                if (key[1] in FIRST_STAGE) == second_stage:
                    data, method, seed = key
                    first = folders[data, FIRST_STAGE[method], seed] if second_stage else None
                    tasks[pool.submit(run, folders[key], data, method, args.steps, seed, args.points, first)] = key
            for done in as_completed(tasks):
                results[tasks[done]] = done.result()
                print(f"{len(results)} of {len(order)}: {', '.join(map(str, tasks[done]))}", flush=True)
    rows = [row for key in order for row in results[key]]
    rows += [floor(data, seed, args.points) for data in args.data for seed in seeds]
    heading = f"""# Methods on exactly solvable data

{args.steps} steps of 256 points; mean ± standard deviation over seeds {", ".join(map(str, seeds))}. Distances of
solutions are in units of √d·σ_data. Distances of samples compare {2 * args.points} samples with 10,000 data points.
Calls are counted for each image of the training, or for each sample; a derivative counts as one call. Training costs
are CPU seconds of the training process with one thread, without start-up and evaluation, the minimum over the seeds.
TCM continues the run of ECT with the same seed, and has twice the steps of the other methods; its CPU seconds
include those of ECT.

    python benchmarks/exact_bench.py {" ".join(sys.argv[1:] if arguments is None else arguments)}

{date.today()}, {platform.machine()}, {cores} cores, torch {torch.__version__}."""
    write_atomically(args.folder / "exact.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(args.folder / "exact.md", table(rows, heading))
    for data in args.data:
        models = {method: load(folders[data, method, seeds[0]]) for method in args.methods}
        steps = {method: results[data, method, seeds[0]][0]["steps"] for method in args.methods}
        picture(args.folder / f"exact_{data}.png", truth(data, args.points)[0], models, steps)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; written to {args.folder}")


if __name__ == "__main__":
    main()
