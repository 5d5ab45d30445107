"""mypy finds no error in the rooms that it checks, and every exception there has its code and its reason."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKED = ("noise", "losses", "optim", "sampling", "methods", "networks", "storage", "export")


def test_no_error():
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull]  # writing a cache takes a tenth of the time
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_room_among_these_is_left_out():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    left_out = [name for one in settings["overrides"] if one.get("ignore_errors") for name in one["module"]]
    assert not [name for name in left_out if name.removeprefix("consistency_models.").split(".")[0] in (*CHECKED, "*")]


@pytest.mark.parametrize("room", CHECKED)
def test_every_ignore_has_a_code_and_a_reason(room):
    for path in (ROOT / "src/consistency_models" / room).glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[a-z-]+(?:, ?[a-z-]+)*\]  # \w", line), f"{path}: {line}"
            assert "mypy: " not in line, f"{path}: {line}"
