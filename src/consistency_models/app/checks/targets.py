"""Whether the class or function that a `_target_` names exists, found out without importing anything."""

from __future__ import annotations

import importlib.util
import symtable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

__all__ = ["Found", "find"]


@dataclass(frozen=True)
class Found:
    """Where the search for a dotted name ended.

    Args:
        exists: everything was found.
        module: what was found, dotted.
        missing: the part that was looked for in it in vain.
        rest: what follows that part.
        candidates: the parts that there are.
    """

    exists: bool
    module: str = ""
    missing: str = ""
    rest: str = ""
    candidates: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def find(target: str) -> Found:
    """Look a dotted name up in source files: package, modules, and what the last module defines or imports."""
    first, *parts = target.split(".")
    try:
        spec = importlib.util.find_spec(first) if first and parts else None
    except ValueError:
        spec = None
    if spec is None or spec.origin is None:
        return Found(False, missing=target)
    file, module = Path(spec.origin), [first]
    while inner := _inner(file, parts):
        file = inner
        module.append(parts.pop(0))
    if not parts:
        return Found(False, ".".join(module), "a class or function")
    names, members = _names(file)
    if parts[0] not in names and "*" not in names:
        beside = {path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set()
        candidates = sorted(name for name in {*names, *beside} if not name.startswith("_"))
        return Found(False, ".".join(module), parts[0], ".".join(parts[1:]), tuple(candidates))
    if first == "consistency_models" and len(parts) == 2 and parts[1] not in members.get(parts[0], parts):
        return Found(False, ".".join([*module, parts[0]]), parts[1], "", tuple(members[parts[0]]))
    return Found(True)


def _inner(file: Path, parts: list[str]) -> Path | None:
    """The file of module parts[0] in the package of `file`; None if there is none, or a name hides it."""
    if not parts or file.name != "__init__.py" or (len(parts) == 1 and parts[0] in _names(file)[0]):
        return None
    candidates = (file.parent / parts[0] / "__init__.py", file.parent / f"{parts[0]}.py")
    return next((path for path in candidates if path.is_file()), None)


@lru_cache(maxsize=64)
def _names(file: Path) -> tuple[set[str], dict[str, list[str]]]:
    """Names at the top level of a source file ("*" for a star import), and those in each of its classes."""
    if file.suffix != ".py":
        return {"*"}, {}
    try:
        source = file.read_text(encoding="utf-8")
        table = symtable.symtable(source, str(file), "exec")
    except (OSError, SyntaxError, ValueError):
        return {"*"}, {}  # the import will say it better
    names = set(_defined(table))
    if "import *" in source:
        names.add("*")
    classes = (child for child in table.get_children() if child.get_type() == "class")
    return names, {child.get_name(): _defined(child) for child in classes}


def _defined(table: symtable.SymbolTable) -> list[str]:
    return [s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()]
