"""eval.py's tasks run in this process, on small models that were trained for a step or two."""

from jobs import TINY, composed, run

from consistency_models.app.tasks import run_task
from consistency_models.errors import Exit

QUICK = ("evaluation.ode_points=8", "evaluation.ode_steps=4")
DIGITS = ("network.model_channels=8", "network.channel_mult=[1]", "features=identity", "data.batch_size=16", *QUICK)
POINTS = ("data=mixture", "network.width=16", "network.depth=1", "+data.source.sample_size=400", *QUICK)


def trained(folder, *overrides, steps=2):
    """A run folder."""
    assert run(folder, *TINY, *overrides, f"trainer.max_steps={steps}") == Exit.DONE
    return folder


def evaluate(folder, *overrides):
    """The exit code of `python eval.py run=FOLDER …`."""
    return run_task(composed("eval", f"run={folder}", f"paths.output={folder}", "device=cpu", *overrides))
