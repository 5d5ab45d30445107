"""What a command imports, in fresh processes."""

import subprocess
import sys

from evals import DIGITS, trained
from jobs import ROOT


def printed(code, *arguments):
    code = f"import sys\nfrom pathlib import Path\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_eval_needs_no_lightning(tmp_path):
    """Neither to sample nor to evaluate."""
    run = trained(tmp_path, *DIGITS, steps=1)
    code = f"""
from consistency_models.app.main import main
common, codes = sys.argv[1:], []
for task in (["task=sample", "n=4"], ["n=40"]):
    sys.argv[1:] = [*common, *task]
    codes.append(main("eval", Path({str(ROOT)!r})))
print(codes, {{'lightning', 'transformers'}} & {{*sys.modules}})
"""
    assert printed(code, f"run={run}", "device=cpu") == "[0, 0] set()"


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
