"""Each tutorial is copied and pasted: its commands and its Python code run in order, in a folder of a reader.

The trainings end after a few steps, and everything else is as on the page.
"""

import os
import subprocess
import sys

import pytest
from documented import ROOT, blocks

TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
SHORTENED = """
set -euo pipefail
python() {
    local steps=(trainer.max_steps=2)
    case "$*" in *plan=true*) steps=() ;; *ckpt_path=*) steps=(trainer.max_steps=4) ;; esac
    case "$1" in
        train.py) command python "$@" "${steps[@]}" trainer.accelerator=cpu evaluation.n=32 evaluation.ode_points=4 ;;
        *) command python "$@" ;;
    esac
}
"""


def script(page):
    """The blocks of a page as one bash script."""
    parts = [SHORTENED]
    for block in blocks(page):
        if block.language == "bash" and not block.not_run and "sbatch" not in block.text:
            parts.append(block.text)
        elif block.language == "python":
            parts.append(f"python - <<'END'\n{block.text}END\n")
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_copy_and_paste(page, tmp_path):
    for name in ("train.py", "eval.py", "benchmarks", "conf", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "WANDB_MODE": "offline",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", "-c", script(page)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
