"""A faster `import lightning`: without the metrics of torchmetrics.

Lightning needs two classes of torchmetrics. `import torchmetrics` imports every metric, and with them torchvision,
scipy.signal and, where it is installed, transformers: half of the time of `import lightning`; see docs/performance.md.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from logging import getLogger
from types import ModuleType
from typing import Any

__all__ = ["defer_metrics"]

NAME = "torchmetrics"


class _Deferred(ModuleType):
    """The package torchmetrics, whose `__init__` runs at the first use of a name that Lightning does not need."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
        return getattr(self, name)


def defer_metrics() -> None:
    """Import of torchmetrics only what Lightning needs; no effect if torchmetrics is imported already.

    Submodules, such as `torchmetrics.image`, and all names of the package are imported when they are used.
    """
    if NAME in sys.modules or (spec := find_spec(NAME)) is None:
        return
    package = module_from_spec(spec)
    package.__class__ = _Deferred
    package.__version__, package._logger = version(NAME), getLogger(NAME)  # type: ignore[attr-defined]
    sys.modules[NAME] = package
    try:
        import_module(f"{NAME}.utilities")  # before `metric`, which it imports
        package.Metric = import_module(f"{NAME}.metric").Metric  # type: ignore[attr-defined]
        package.MetricCollection = import_module(f"{NAME}.collections").MetricCollection  # type: ignore[attr-defined]
    except ImportError:  # another version of torchmetrics: Lightning imports all of it
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
