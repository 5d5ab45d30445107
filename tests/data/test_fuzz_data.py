"""Mutated zips, dataset.json files and caches: images or a DataError, and nothing outside is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS")


def fuzz(kind, cases, seed=0):
    """How the cases ended, by `fuzz.py` in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("fuzz.py")),
        kind,
        "--cases",
        str(cases),
        "--seed",
        str(seed),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    endings = json.loads(done.stdout.splitlines()[-1])
    assert sum(endings.values()) == cases
    assert set(endings) <= {"read", "refused"}
    return endings


@pytest.mark.parametrize("kind", ["zip", "json", "cache"])
def test_two_hundred_mutations(kind):
    endings = fuzz(kind, 200)
    assert endings["read"] > 10  # some mutations are harmless: not everything is refused
    assert endings.get("refused", 0) > 50 or kind == "cache"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "json", "cache"])
def test_thousands_of_mutations(kind):
    assert fuzz(kind, 3000, seed=1)["read"] > 100
