"""Mutated zips, dataset.json files and caches: images or a DataError, and nothing outside is touched."""

import json
import sys

import pytest
from jobs import command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS")


def fuzz(kind, cases, folder, seed=0):
    """How the cases ended, by `fuzz.py` in a process of its own."""
    code, output = command(folder, "tests/data/fuzz.py", kind, "--cases", str(cases), "--seed", str(seed))
    assert code == 0, output
    endings = json.loads(output.splitlines()[-1])
    assert sum(endings.values()) == cases
    assert set(endings) <= {"read", "refused"}
    return endings


@pytest.mark.parametrize("kind", ["zip", "json", "cache"])
def test_two_hundred_mutations(kind, tmp_path):
    endings = fuzz(kind, 200, tmp_path)
    assert endings["read"] > 10  # some mutations are harmless: not everything is refused
    assert endings.get("refused", 0) > 50 or kind == "cache"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "json", "cache"])
def test_thousands_of_mutations(kind, tmp_path):
    assert fuzz(kind, 3000, tmp_path, seed=1)["read"] > 100
