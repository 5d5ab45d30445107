"""A kind of reference numbers that is absent is no test."""

from pathlib import Path


def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent
    absent = [item for item in items if "NOTSET" in item.name and here in item.path.parents]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]
