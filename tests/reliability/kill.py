"""SIGKILL at random moments: a run that is killed and resumed again and again ends as one that was not.

    python tests/reliability/kill.py                                  # every method, 20 kills each
    python tests/reliability/kill.py --methods ict cd --kills 4 --seed 1 --variants "2 processes"

Every job is a command, `python train.py …`, in a process group of its own. Kills rotate over the variants (processes
and data workers) and over the moments: while it trains, while it writes a checkpoint, at any time of the job's life,
and, with two processes, one of them, or the first while the second starts (the other must then end by itself). In the
end each run's last checkpoint (weights, averages, target, optimiser) and every logged figure of every step are compared
bit for bit. Prints one line a kill, then a table. Exit code 1 if anything differs or is left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "resume")]

from jobs import ROOT, TINY  # noqa: E402
from test_resume import METHODS, TEACHER, assert_same, contents  # noqa: E402

DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
VARIANTS = {
    "1 process": (),
    "1 process, 2 workers": ("data.workers=2",),
    "2 processes": DDP,
    "2 processes, 1 worker each": (*DDP, "data.workers=1"),
}
MOMENTS = ("training", "saving", "any time", "one process", "second starting")
STEPS = 150


@dataclass
class Run:
    """One run, killed several times.

    Args:
        arguments: of train.py.
        folder: its run folder.
        draw: random moments.
        start_up, seconds: what it takes to its first step, and the longest that it may then train before it is killed.
    """

    arguments: tuple[str, ...]
    folder: Path
    draw: random.Random
    start_up: float = 0.0
    seconds: float = 1.0
    killed: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen:
        """Start the run, or go on with it where there is a checkpoint."""
        resume = [f"ckpt_path={self.folder}"] if any(self.checkpoints.glob("*.ckpt")) else []
        command = [sys.executable, str(ROOT / "train.py"), *self.arguments, f"hydra.run.dir={self.folder}", *resume]
        with open(self.folder.with_suffix(".log"), "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        """Let the run come to its end."""
        if (self.folder / "DONE").exists():  # it was killed on its way out
            return
        job = self.start()
        job.wait()
        if job.returncode:
            raise SystemExit(f"exit code {job.returncode}, see {self.folder.with_suffix('.log')}")

    def kill(self, moment: str) -> str:
        """Start the run, kill it at a moment, and say at which step."""
        if (self.folder / "DONE").exists():
            return "had ended before"
        seen, job = self.logged(), self.start()
        if moment == "any time":
            _wait(job, self.draw.uniform(0, self.start_up + self.seconds))
        elif moment == "second starting":
            while job.poll() is None and not _second(job):
                time.sleep(0.02)
        else:
            while job.poll() is None and self.logged() == seen:
                time.sleep(0.002)
        if moment in ("training", "one process"):
            _wait(job, self.draw.uniform(0, self.seconds))
        elif moment == "saving":
            _wait(job, self.draw.uniform(0, self.seconds / 2))
            while job.poll() is None and not any(self.checkpoints.glob(".last.ckpt.*.part")):
                pass
        if job.poll() is not None:
            return "had ended before"
        if moment == "one process":
            left = _kill_one(job, self.draw.choice([job.pid, *_second(job)]))
        else:
            left = _kill_one(job, job.pid) if moment == "second starting" else _kill_all(job)
        half = ", half a checkpoint left" if any(self.checkpoints.glob(".*.part")) else ""
        step = max([int(line.split(",")[0]) for line in self.logged().splitlines()[1:]], default=0)
        self.killed.append(f"{moment}: step {step}{half}{left}")
        return self.killed[-1]

    def logged(self) -> str:
        """What metrics.csv holds."""
        file = self.folder / "metrics.csv"
        return file.read_text() if file.exists() else ""

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.folder / "checkpoints"


def main(arguments: list[str] | None = None) -> int:
    """Kill and compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, table, wrong = random.Random(options.seed), [], 0
    for method in options.methods:
        for position, variant in enumerate(options.variants):
            kills = range(position, options.kills, len(options.variants))
            moments = [MOMENTS[(position + i) % len(MOMENTS)] for i in range(len(kills))]
            if "2 processes" not in variant:
                moments = [moment if moment in MOMENTS[:3] else "training" for moment in moments]
            if moments:
                with tempfile.TemporaryDirectory() as folder:
                    killed, difference = one(method, variant, moments, Path(folder), draw)
                wrong += bool(difference) or any("left behind" in kill for kill in killed)
                print(f"{method}, {variant}, {len(killed)} kills: {difference or 'identical'}", flush=True)
                halves = sum("half" in kill for kill in killed)
                table.append((method, variant, len(killed), halves, difference or "identical"))
    print(f"\n{'method':10} {'variant':28} {'kills':>5} {'in a save':>9}  weights, averages, optimiser, logged figures")
    for method, variant, kills, halves, result in table:
        print(f"{method:10} {variant:28} {kills:5} {halves:9}  {result}")
    print(f"{sum(row[2] for row in table)} kills, {sum(row[3] for row in table)} in a save, {wrong} runs that differ")
    return int(wrong > 0)


def one(
    method: str, variant: str, moments: list[str], folder: Path, draw: random.Random, steps: int = STEPS
) -> tuple[list[str], str]:
    """The kills of one run, and how it differs from the undisturbed one in the end; an empty text: not at all."""
    arguments = (
        *(f"model={method}", "data=mixture", "data.conditional=true", "data.batch_size=32"),
        *("network=mlp", "network.dropout=0.1", *TEACHER.get(method, ()), *TINY, *VARIANTS[variant]),
        *(f"trainer.max_steps={steps}", "callbacks.checkpoint.every_n_steps=7"),
    )
    undisturbed = Run(arguments, folder / "undisturbed", draw)
    began = time.time()
    undisturbed.finish()
    first, last = ((undisturbed.folder / name).stat().st_mtime for name in ("config.yaml", "checkpoints/last.ckpt"))
    killed = Run(arguments, folder / "killed", draw, first - began, (last - first) / (len(moments) + 2))
    for moment in moments:
        print(f"{method}, {variant}: {killed.kill(moment)}", flush=True)
    killed.finish()
    try:
        assert_same(contents(undisturbed.folder), contents(killed.folder))
    except AssertionError as error:
        return killed.killed, f"DIFFERS: {str(error).splitlines()[0]}"
    return killed.killed, ""


def _wait(job: subprocess.Popen, seconds: float) -> None:
    end = time.monotonic() + seconds
    while job.poll() is None and time.monotonic() < end:
        time.sleep(0.001)


def _kill_all(job: subprocess.Popen) -> str:
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    return ""


def _second(job: subprocess.Popen) -> list[int]:
    """The number of the second training process of a job, if there is one."""
    found = subprocess.run(["pgrep", "-g", str(job.pid), "-f", "job.py --job"], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()[:1]]


def _kill_one(job: subprocess.Popen, process: int) -> str:
    """Kill one of the training processes of a job; the others must end within two minutes."""
    os.kill(process, signal.SIGKILL)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        job.poll()
        if subprocess.run(["pgrep", "-g", str(job.pid)], capture_output=True).returncode:
            return ""
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGKILL)
    return ", processes left behind"


if __name__ == "__main__":
    sys.exit(main())
