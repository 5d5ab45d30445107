"""Checks as main() sets them up."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf


@pytest.fixture(scope="session", autouse=True)
def _as_in_main():
    """What main() does before it checks anything."""
    OmegaConf.register_new_resolver("either", lambda test, yes, no: yes if test else no, replace=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJECT_ROOT", str(Path(__file__).parents[2]))
        patch.delenv("CONSISTENCY_MODELS_RUNS", raising=False)
        yield
