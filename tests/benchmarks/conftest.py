"""The scripts of benchmarks/, which are no package, for import."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
