"""The threads of a process."""

import pytest

from consistency_models.devices import available_cores, cpu_threads
from consistency_models.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "threads"), [("6", 6), ("6,2", 6), (" 6 , 2", 6), ("", available_cores()), (None, available_cores())]
)
def test_threads_are_those_of_openmp(value, threads, monkeypatch):
    if value is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cpu_threads(1) == threads
    assert cpu_threads(2 * threads) == 1


@pytest.mark.parametrize("value", ["many", "-1", ",2", "9" * 20])
def test_a_number_of_threads_that_is_none(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(ConfigError, match=f"^OMP_NUM_THREADS={value} is not allowed. Allowed: a whole number"):
        cpu_threads(1)
