"""Training steps of this project beside those of other projects' own code, on the same network, batch and optimiser.

    python benchmarks/train_peers.py --edm FOLDER --ect FOLDER --openai FOLDER --threads 1 --clock cpu

Each FOLDER is the root of a checkout of the project, whose code is imported and is not part of this one: NVlabs/edm,
locuslab/ect, openai/consistency_models (with its requirements piq, blobfile and mpi4py). A project without FOLDER is
left out.

| project | its step | step of this project |
|--|--|--|
| edm | EDMLoss of EDMPrecond(SongUNet) | model=teacher network=ddpmpp |
| ect | ECMLoss of ECMPrecond(SongUNet) | model=ect network=ddpmpp |
| openai | CMTrainLoop.run_step, consistency training of UNetModel | model=ct network=openai_adm |

The steps of the projects: `peer_steps.py`. Those of this project run in Lightning's loop with the callbacks of
`train.py`, on images of the data module. Each round runs all programs in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import measuring
from case import Case, StepClock
from peer_steps import DROPOUT, FILES, PEERS, SIZE, on_a_cpu

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OURS = {
    "edm": ["model=teacher", "network=ddpmpp", f"network.dropout={DROPOUT}"],
    "ect": ["model=ect", "network=ddpmpp", f"network.dropout={DROPOUT}"],
    "openai": ["model=ct", "network=openai_adm", "network.dropout=0", "network.head_channels=32"],
}
LAYOUTS = {"ours": [], "ours, channels_last=false": ["channels_last=false"]}
COLUMNS = {
    "project": "{project}",
    "program": "{program}",
    "parameters": "{parameters:,}",
    "ms a step": "{milliseconds:.4g}",
    "of the project's step": "{ratio:.2f}",
}


def time_theirs(step: Callable[[], None], args: Any) -> list[float]:
    """Return the seconds of each measured step of another project."""
    read, times = CLOCKS[args.clock], []
    with on_a_cpu():
        for _ in range(args.warm + args.steps):
            step()
            times.append(read())
    return [later - earlier for earlier, later in pairwise(times)][args.warm - 1 :]


def time_ours(case: Case, args: Any) -> list[float]:
    """Return the seconds of each measured step of this project."""
    clock = StepClock(CLOCKS[args.clock])
    case.train(args.warm + args.steps, clock)
    return clock.seconds()[args.warm - 1 :]


def measure(project: str, args: Any) -> list[dict[str, Any]]:
    """Return the rows of one project.

    Raises:
        ValueError: its network and ours have different numbers of parameters.
    """
    images = measuring.random_images(3, SIZE, 10, args.batch).images
    net, step = PEERS[project](getattr(args, project), images, args)
    networks, runs = {project: net}, {project: partial(time_theirs, step, args)}
    size = [f"network.model_channels={args.channels}", f"network.num_blocks={args.blocks}"]
    shared = ["data=cifar10", "augment=none", "compile=false", f"data.batch_size={args.batch}", *size]
    for name, layout in LAYOUTS.items():
        case = Case([*OURS[project], *shared, *layout], "cpu")
        networks[name], runs[name] = case.method.model, partial(time_ours, case, args)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the networks differ: {counts} parameters")
    rounds = measuring.interleaved(runs, args.rounds)
    medians = {name: [measuring.median(steps) for steps in found] for name, found in rounds.items()}
    return [
        {
            "project": project,
            "program": name,
            "parameters": counts[name],
            "milliseconds": 1e3 * measuring.median(found),
            "ratio": measuring.median([a / b for a, b in zip(found, medians[project])]),
            "rounds": rounds[name],
        }
        for name, found in medians.items()
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print, write JSON if `--json` is given, and return the results."""
    parser = measuring.parser(__doc__)
    for project, file in FILES.items():
        parser.add_argument(f"--{project}", type=Path, metavar="FOLDER", help=f"a checkout, with {file}")
    parser.add_argument("--channels", type=int, default=32, help="model_channels of the networks")
    parser.add_argument("--blocks", type=int, default=2, help="residual blocks of a level")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each round")
    parser.add_argument("--warm", type=int, default=6, help="steps before them; RAdam's first five differ")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: of the process, without other work")
    args = parser.parse_args(arguments)
    if args.device != "cpu" or args.warm < 1:
        parser.error("the script measures on a CPU, --device cpu, after at least one step, --warm 1")
    folders = {project: getattr(args, project) for project in FILES}
    given = [project for project, folder in folders.items() if folder is not None]
    if not given:
        parser.error(f"no project is given: add a checkout, {' or '.join(f'--{project} FOLDER' for project in FILES)}")
    for project in given:
        if not (folders[project] / FILES[project]).is_file():
            parser.error(f"--{project} {folders[project]}: no file {FILES[project]}; give the root of a checkout")
    results = measuring.machine(args)
    results["rows"] = [row for project in given for row in measure(project, args)]
    measuring.report(results, COLUMNS, args.json)
    for project in FILES:
        if project not in given:
            print(f"{project} was left out: no --{project} FOLDER")
    return results


if __name__ == "__main__":
    main()
