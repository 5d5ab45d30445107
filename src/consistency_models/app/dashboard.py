"""`python -m consistency_models.app.dashboard ENTITY/PROJECT`: save a view of a W&B project for these runs.

The view shows quality against network calls and images seen, the curriculum, losses, speed and samples. Lines are means
over the seeds of a setting. --json prints the view without a login. Requires the extra `dashboard`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main", "workspace"]


def workspace(entity: str, project: str) -> Any:
    """Build the view, an object of wandb-workspaces; `save()` requires a login."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as views

    def lines(title: str, regex: str, x: str, **options: Any) -> Any:
        """One line for each setting: mean and standard deviation over its seeds."""
        return panels.LinePlot(
            title=title, x=x, metric_regex=regex, groupby=panels.Config("cell"), groupby_rangefunc="stddev", **options
        )

    sections = {
        "Quality": [
            lines("one step, over images seen", r"val/(fd|fid|sw).*_1step", "images_seen"),
            lines("more steps, over images seen", r"val/(fd|fid|sw).*_([2-9]|\d\d+)step", "images_seen"),
            panels.MediaBrowser(title="against network calls (eval.py)", media_keys=["eval/quality"]),
            panels.WeavePanelSummaryTable(table_name="eval/results"),
            lines("distance to the true solution of the ODE", r"val/ode_error.*", "images_seen", log_y=True),
        ],
        "Samples": [
            panels.MediaBrowser(title="the same noise", media_keys=["samples/1step", "samples/2step"]),
            panels.MediaBrowser(title="the same noise over the training", media_keys=["samples/film"]),
        ],
        "Training": [
            lines("loss", r"train/loss", "images_seen", log_y=True),
            lines("loss by noise level", r"train/loss_quartile.*", "images_seen", log_y=True),
            lines("noise levels", r"curriculum/N", "trainer/global_step", log_y=True),
            lines("decay of the target", r"curriculum/ema", "trainer/global_step"),
            lines("images a second", r"train/images_per_second", "trainer/global_step"),
        ],
    }
    return views.Workspace(
        entity=entity,
        project=project,
        name="Consistency models",
        sections=[views.Section(name=name, panels=each, is_open=True) for name, each in sections.items()],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Save or print the view, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consistency_models.app.dashboard", description=__doc__)
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("--json", action="store_true", help="print the view, without a login")
    given = parser.parse_args(arguments)
    entity, _, project = given.project.partition("/")
    if not entity or not project:
        print(f"error: project={given.project} is not allowed. Allowed: ENTITY/PROJECT", file=sys.stderr)
        return 2
    try:
        view = workspace(entity, project)
    except ImportError:
        fix = 'pip install -e ".[dashboard]"'
        print(f"error: the package wandb-workspaces is not installed. Install it with {fix}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(json.loads(view._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=2))
        return 0
    import wandb

    try:
        print(view.save().url)
    except (wandb.Error, OSError) as error:
        print(f"error: {given.project}: W&B says: {' '.join(str(error).split())}; --json prints it", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
