"""Report of the sweeps of published ablations, compared with the published orders.

    python benchmarks/published.py runs/ict_depth/DATE_TIME runs/cd_solver/DATE_TIME ...
    python benchmarks/published.py                               # the page again, from the stored results
    python benchmarks/published.py --cost --teacher RUN          # the cost of all sweeps of digits; trains nothing

Stores the results of the given folders in docs/results/sweeps/NAME_SIZE.json, with a figure, and writes
docs/results/sweeps.md from all stored results: the mixture and digits side by side, the results of each cell, and a
verdict on each order that the paper states, by this rule:

    Two settings are compared in pairs of runs that agree in everything else, including the seed. The difference of a
    seed is the mean over its pairs. An order is reproduced if every seed agrees with it and the mean difference is
    above twice its standard error. It is not reproduced if every seed contradicts it and the mean difference is below
    minus twice its standard error. Otherwise it is too close to call. Distances are those of samples with the fewest
    network calls; lower is better. With fewer than three seeds there is no verdict.

Give all folders of a sweep and size in one call: their results replace the stored ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from orders import PUBLISHED, SIZES, Order, differences, verdict
from sweep_costs import commands, cost_table

from consistency_models.app.sweep_folder import varied
from consistency_models.evaluation.plots import save_quality
from consistency_models.evaluation.runs import Run, cells_of, read_runs
from consistency_models.files import read_json, read_yaml

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results"
RULE = [line.strip() for line in __doc__.partition("by this rule:\n\n")[2].partition("\nGive all")[0].splitlines()]
NOT_RUN, NOT_ASKED = "not run yet", "not asked"
HOLDS = "reproduced"
Results = dict[str, dict[str, Any]]  # size -> content of a file


def read_jobs(folders: Sequence[Path]) -> dict[tuple[str, str], dict[Path, Run]]:
    """Read (sweep, size) -> finished runs by folder. Its setting is the overrides in which the runs of its key differ.

    The path of a teacher is no part of a setting.
    """
    jobs: dict[tuple[str, str], dict[Path, Run]] = {}
    for folder in folders:
        for name, run in read_runs([folder]).items():
            job = folder / Path(name).name
            run.setting = [
                override.lstrip("+")
                for override in read_yaml(job / "overrides.yaml", job)
                if not override.partition("=")[0].endswith(".path")
            ]
            jobs.setdefault((folder.resolve().parent.name, run.config["sweep_size"]), {})[job] = run
    for runs in jobs.values():
        for run, setting in zip(runs.values(), varied(run.setting for run in runs.values())):
            run.setting = setting
    return jobs


def store(sweep: str, size: str, jobs: dict[Path, Run], out: Path) -> None:
    """Write the results and the figure of a sweep and size, with the days and the versions of torch of its runs."""
    runs, summaries = list(jobs.values()), [job / "summary.json" for job in jobs]
    days = sorted({date.fromtimestamp(file.stat().st_mtime).isoformat() for file in summaries})
    versions = sorted({read_json(file)["versions"]["torch"] for file in summaries})
    cells = cells_of({str(i): run for i, run in enumerate(runs)})
    orders = [order.at(size) for order in PUBLISHED[sweep] if size in order.sizes]
    verdicts = {str(order): verdict(found) for order in orders if (found := differences(runs, order))}
    content = {
        "date": " to ".join(dict.fromkeys([days[0], days[-1]])),
        "machine": f"{os.cpu_count()} shared {platform.machine()} cores",
        "torch": " and ".join(versions),
        "cells": [
            {
                "name": cell.name,
                "seeds": len(cell.runs),
                "metrics": {each["metric"]: [each["value"], each["spread"]] for each in cell.results},
            }
            for cell in cells
        ],
        "verdicts": verdicts,
    }
    (out / "sweeps" / f"{sweep}_{size}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    save_quality(out / "sweeps" / f"{sweep}_{size}.png", {cell.name: cell.results for cell in cells})


def stored(sweep: str, out: Path) -> Results:
    """Read size -> stored results of a sweep."""
    files = {size: out / "sweeps" / f"{sweep}_{size}.json" for size in SIZES}
    return {size: json.loads(file.read_text()) for size, file in files.items() if file.exists()}


def words(order: Order, size: str, results: Results) -> str:
    """Return the verdict on an order at a size, `NOT_RUN` or `NOT_ASKED`."""
    if size not in order.sizes:
        return NOT_ASKED
    return results.get(size, {}).get("verdicts", {}).get(str(order.at(size)), NOT_RUN)


def holds_in(order: Order, results: Results) -> str:
    """Say where an order is reproduced: both, the name of one, none; and what is open."""
    judged = {size: words(order, size, results) for size in order.sizes}
    holding = [SIZES[size] for size, each in judged.items() if each.startswith(HOLDS)]
    open_sizes = [SIZES[size] for size, each in judged.items() if each.startswith((NOT_RUN, "no verdict"))]
    if open_sizes:
        return "; ".join([*holding, f"{' and '.join(open_sizes)} open"])
    return "both" if len(holding) == 2 else holding[0] if holding else "none"


def side_by_side(all_results: dict[str, Results]) -> Iterator[str]:
    """Yield the Markdown lines of the table of all orders, with a count of where they hold."""
    table = [
        (sweep, order, holds_in(order, all_results[sweep])) for sweep, orders in PUBLISHED.items() for order in orders
    ]
    counts = {where: sum(each == where for *_, each in table) for where in ("both", *SIZES.values(), "none")}
    judged = sum(counts.values())
    yield f"Of {len(table)} published orders, {judged} are judged at every size that can show them:"
    yield f"{counts['both']} hold in both, {counts['mixture']} in the mixture only, {counts['digits']} in digits only,"
    yield f"and {counts['none']} in none."
    if left := len(table) - judged:
        yield f"The other {left} are open: a size has not been run yet."
    yield from ("", "| sweep | published | mixture | digits | holds in |", "|---|---|---|---|---|")
    for sweep, order, where in table:
        short = [words(order, size, all_results[sweep]).partition(":")[0] for size in SIZES]
        yield f"| [{sweep}](#{sweep}) | {order} | {' | '.join(short)} | {where} |"


def chapter(sweep: str, results: Results) -> Iterator[str]:
    """Yield the Markdown lines of one sweep: question, verdicts at both sizes, and figure and cells of each size."""
    lines = (ROOT / f"sweeps/{sweep}.yaml").read_text().splitlines()[1:]
    question = [line[2:] for line in lines if line[:2] == "# "]
    yield from ("", f"## {sweep}", "", *(f"> {line}" for line in question if not line.startswith("  ")), "")
    for size in SIZES:
        yield from (f"    python train.py {' '.join(line)}" for line in commands(sweep, size))
    yield from ("", "| published | mixture | digits |", "|---|---|---|")
    for order in PUBLISHED[sweep]:
        shown = f"{order}" if str(order) == str(order.at("digits")) else f"{order}; in digits {order.at('digits')}"
        yield f"| {shown} | {' | '.join(words(order, size, results) for size in SIZES)} |"
    for size, content in results.items():
        yield from ("", f"### {sweep}, {SIZES[size]}", "")
        yield from (f"{content['date']}, {content['machine']}, torch {content['torch']}.", "")
        yield from (f"![quality against network calls](sweeps/{sweep}_{size}.png)", "", *cell_table(content["cells"]))


def cell_table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table with mean and standard deviation over the seeds, for each metric of each cell."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["metrics"] if shown(name)))
    yield "| " + " | ".join(["", *(name.removeprefix("val/") for name in names), "seeds"]) + " |"
    yield "|---" * (len(names) + 2) + "|"
    for cell in cells:
        values = [cell["metrics"].get(name) for name in names]
        texts = ["" if v is None else f"{v[0]:.4g}" + (f" ± {v[1]:.1g}" if v[1] is not None else "") for v in values]
        yield f"| `{cell['name']}` | {' | '.join(texts)} | {cell['seeds']} |"


def shown(metric: str) -> bool:
    """Whether the table shows a metric: metrics of samples, and the ODE error."""
    return metric in ("val/ode_error", "val/ode_error_median") or metric.endswith("step")


def page(out: Path) -> str:
    """Return the page of all stored results."""
    results = {sweep: stored(sweep, out) for sweep in PUBLISHED}
    lines = ["# The published ablations, at the size of a CPU", "", "This command writes this page:", ""]
    lines += ["    python benchmarks/published.py runs/*/*", "", *RULE, "", "Discussion: [sweeps](../sweeps.md)."]
    lines += ["", "## Mixture and digits side by side", "", *side_by_side(results)]
    lines += (line for sweep in PUBLISHED for line in chapter(sweep, results[sweep]))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Store the results of the folders, and write the page; or print the cost of a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", type=Path, help="folders of sweeps")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to; by default docs/results")
    parser.add_argument("--cost", action="store_true", help="print the cost of all sweeps of digits, and train nothing")
    parser.add_argument("--teacher", default="RUN", help="with --cost: the run of model=teacher")
    args = parser.parse_args(arguments)
    if args.cost:
        print("\n".join(cost_table(list(PUBLISHED), args.teacher)))
        return
    (args.out / "sweeps").mkdir(parents=True, exist_ok=True)
    sweeps = [folder for folder in args.folders if (folder / "jobs.csv").exists()]  # runs/*/* has single runs, too
    found = read_jobs(sweeps)
    for (sweep, size), jobs in found.items():
        if any(size in order.sizes for order in PUBLISHED.get(sweep, [])):
            store(sweep, size, jobs, args.out)
    (args.out / "sweeps.md").write_text(page(args.out))
    for sweep in dict.fromkeys(sweep for sweep, _ in found if sweep in PUBLISHED):
        print("\n".join(chapter(sweep, stored(sweep, args.out))))
    print(f"\nwritten to {args.out / 'sweeps.md'}, with the orders of all sweeps")


if __name__ == "__main__":
    sys.exit(main())
