"""examples/captioned_digits.py with few steps: everything runs, and the student learns."""

import json
import subprocess
import sys

import pytest
from jobs import ROOT


@pytest.mark.slow
def test_a_text_to_image_model_is_trained_distilled_and_run_by_diffusers(tmp_path):
    script = ROOT / "examples/captioned_digits.py"
    subprocess.run([sys.executable, script, tmp_path / "demo", "--quick"], check=True, cwd=tmp_path, timeout=1800)
    found = json.loads((tmp_path / "demo/results.json").read_text())
    assert found["latent ODE error"]["student"] < found["latent ODE error"]["before"]
    assert (tmp_path / "demo/samples.png").stat().st_size > 1000
    assert (tmp_path / "demo/student/model_index.json").is_file()
