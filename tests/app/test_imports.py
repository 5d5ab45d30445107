"""What a command imports, in fresh processes."""

import subprocess
import sys

import pytest
from evals import DIGITS, trained
from jobs import ROOT

MAIN = "from consistency_models.app.main import main; main({task!r}, Path({root!r}))"


def printed(code, *arguments):
    code = f"import sys\nfrom pathlib import Path\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("task", [("task=sample", "n=4"), ("n=40",)])
def test_eval_needs_no_lightning(task, tmp_path):
    run = trained(tmp_path, *DIGITS, steps=1)
    code = MAIN.format(task="eval", root=str(ROOT)) + "\nprint({'lightning', 'transformers'} & {*sys.modules})"
    assert printed(code, f"run={run}", "device=cpu", *task) == "set()"


def test_lightning_without_the_metrics_that_it_does_not_use():
    code = """
from consistency_models.app.lazy_torchmetrics import defer_metrics
defer_metrics()
import lightning, torchmetrics
before = "torchmetrics.functional" in sys.modules
from torchmetrics.regression import MeanSquaredError
kinds = issubclass(MeanSquaredError, torchmetrics.Metric), torchmetrics.Metric is torchmetrics.metric.Metric
print(before, *kinds, torchmetrics.MeanMetric.__name__, hasattr(torchmetrics, "nothing"))
"""
    assert printed(code) == "False True True MeanMetric False"


def test_torchmetrics_of_another_version_is_imported_as_usual(tmp_path):
    """Without the modules that this version has."""
    (tmp_path / "torchmetrics").mkdir()
    (tmp_path / "torchmetrics/__init__.py").write_text("Metric = 1\n")
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
from consistency_models.app.lazy_torchmetrics import defer_metrics
defer_metrics()
import torchmetrics
print(torchmetrics.Metric)
"""
    assert printed(code) == "1"
