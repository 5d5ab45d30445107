"""The folder of a multirun: its jobs, their states, and their results with statistics over the seeds."""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from consistency_models.app.checks.problems import problem
from consistency_models.app.folder import RunFolder
from consistency_models.errors import Exit
from consistency_models.files import read_text, read_yaml, replaced, write_atomically
from consistency_models.seeds import without_seeds

__all__ = ["SweepFolder", "varied"]

COLUMNS = ("job", "overrides", "differs", "status", "monitor", "metric", "exit_code")

Row = dict[str, str]


def varied(jobs: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return for each job the overrides that not all jobs have in common."""
    jobs = [list(job) for job in jobs]
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [[override for override in job if override not in common] for job in jobs]


class SweepFolder:
    """The folder of a multirun: jobs.csv (one row for each job), summary.md, overrides.yaml, and a folder for each job.

    Several processes write to this folder, so every change takes a lock.

    Args:
        path: the folder; created with the first job.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def begin(self, typed: Sequence[str], jobs: Sequence[Sequence[str]] | None) -> None:
        """Write the overrides of the command and all jobs as WAITING; None for a search with unknown jobs.

        Raises:
            ConfigError: a file has the place of the folder of a job.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for job in self.path.iterdir():
            if job.name.isdecimal() and not job.is_dir():
                reason = "a file is in the place of a job"
                raise problem("run folder", job, "a folder", "delete or rename it", Exit.STORAGE, reason=reason)
        if not (self.path / "overrides.yaml").exists():
            write_atomically(self.path / "overrides.yaml", yaml.safe_dump(list(typed)))
            rows = [_row(str(i), shlex.join(job)) for i, job in enumerate(jobs or ())]
            self._change(lambda _: rows)

    def matches(self, typed: Sequence[str], jobs: Sequence[Sequence[str]] | None) -> bool:
        """Whether this is the folder of a multirun with these overrides and jobs."""
        try:
            before = read_yaml(self.path / "overrides.yaml")
        except (OSError, ValueError):
            return False
        same = jobs is None or [row["overrides"] for row in self.rows()] == [shlex.join(job) for job in jobs]
        return before == list(typed) and same

    def rows(self) -> list[Row]:
        """Read the rows of jobs.csv; empty if there is no such file, or the file is damaged."""
        try:
            file = io.StringIO(read_text(self.path / "jobs.csv"), newline="")
            rows = [{column: row[column] for column in COLUMNS} for row in csv.DictReader(file, strict=True)]
            if any(None in row.values() for row in rows):  # a short line
                return []
            for row in rows:  # raises an error for values that the summary and the exit code cannot convert
                shlex.split(row["overrides"]), shlex.split(row["differs"])
                int(row["exit_code"] or 0), float(row["monitor"] or 0)
        except (OSError, ValueError, KeyError, csv.Error):
            return []
        return rows

    def note(self, job: str, overrides: Sequence[str], exit_code: int | None = None) -> None:
        """Record the start of a job, or its end with an exit code; the state is read from the folder of the job."""
        run = RunFolder(self.path / job)
        status = "RUNNING" if exit_code is None else run.state or "FAILED"
        if status == "DONE" and exit_code == Exit.STOPPED:
            status = "STOPPED"  # in its test; the same command tests it
        new = _row(job, shlex.join(overrides), status, exit_code)
        if new["status"] == "DONE":
            new["metric"], value = run.monitored
            new["monitor"] = "" if value is None else repr(value)

        def replaced(rows: list[Row]) -> list[Row]:
            rows = [new if row["job"] == job else row for row in rows]
            return rows if new in rows else [*rows, new]

        self._change(replaced)

    def is_noted(self, job: str) -> bool:
        """Whether jobs.csv has this job as DONE. A killed process may have finished the job and not noted it."""
        return any(row["job"] == job and row["status"] == "DONE" for row in self.rows())

    @property
    def exit_code(self) -> int:
        """The highest exit code of the jobs; 1 if a job is not finished, or jobs.csv was lost or damaged."""
        rows = self.rows()
        codes = [int(row["exit_code"] or 0) for row in rows]
        unfinished = not rows or any(row["status"] in ("WAITING", "RUNNING") for row in rows)
        return max([*codes, int(unfinished)])

    @property
    def finished(self) -> bool:
        """Whether all jobs are done."""
        return all(row["status"] == "DONE" for row in self.rows())

    def claim(self) -> FileLock | None:
        """Lock this multirun for this process; None if another process holds the lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".running")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def _change(self, change: Callable[[list[Row]], list[Row]]) -> None:
        with FileLock(self.path / ".jobs"):
            rows = change(self.rows())
            for row, overrides in zip(rows, varied(shlex.split(row["overrides"]) for row in rows)):
                row["differs"] = shlex.join(override.lstrip("+") for override in overrides)
            with replaced(self.path / "jobs.csv") as part, open(part, "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            write_atomically(self.path / "summary.md", self.summary())

    def summary(self) -> str:
        """Return a summary in Markdown: jobs by state, mean and deviation of each cell over its seeds, failures."""
        rows = self.rows()
        states = [row["status"] for row in rows]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        lines = [f"# {self.path.parent.name}/{self.path.name}", "", f"{len(rows)} jobs: {counts}", ""]
        cells: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row["status"] == "DONE" and row["monitor"]:
                cell = without_seeds(shlex.split(row["differs"]))
                cells.setdefault((cell, row["metric"]), []).append(float(row["monitor"]))
        if cells:
            lines += ["| | metric | mean | standard deviation | seeds |", "|---|---|---|---|---|"]
        for (cell, metric), values in cells.items():
            deviation = f"{statistics.stdev(values):.2g}" if len(values) > 1 else ""
            name = f"`{cell}`" if cell else "all"
            lines.append(f"| {name} | {metric} | {statistics.mean(values):.4g} | {deviation} | {len(values)} |")
        for row in rows:
            if row["status"] in ("FAILED", "STOPPED"):
                mark = self.path / row["job"] / row["status"]
                text = mark.read_text(errors="replace") if mark.is_file() else ""
                last_line = text.strip().rpartition("\n")[2]
                lines.append(f"\njob {row['job']} {row['status']}: `{row['overrides']}`  \n{last_line}")
        return "\n".join(lines) + "\n"


def _row(job: str, overrides: str, status: str = "WAITING", exit_code: int | None = None) -> Row:
    row = dict.fromkeys(COLUMNS, "") | {"job": job, "overrides": overrides, "status": status}
    return row | {"exit_code": "" if exit_code is None else str(exit_code)}
