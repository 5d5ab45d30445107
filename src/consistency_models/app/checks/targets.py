"""What a `_target_` names: whether it exists, and its arguments. Source files are read; nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["Found", "class_attribute", "find"]

OWN = "consistency_models"
KNOWN = (OWN, "torch", "lightning")
"""Packages whose sources import by full names, so that a definition can be followed through them."""

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Found:
    """Where the search for a dotted name ended.

    Args:
        exists: everything was found.
        module: what was found, dotted.
        missing: the part that was looked for in it in vain.
        rest: what follows that part.
        candidates: the parts that there are.
        arguments: of a class or function of a package in `KNOWN`; None where they are not known.
        loadable: a file may name it: the definition carries the mark of `consistency_models.trust`.
    """

    exists: bool
    module: str = ""
    missing: str = ""
    rest: str = ""
    candidates: tuple[str, ...] = ()
    arguments: tuple[str, ...] | None = None
    loadable: bool = False


@lru_cache(maxsize=256)
def find(target: str) -> Found:
    """Look a dotted name up: package, modules, and what the last module defines or imports."""
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
    names, member = _names(file), ".".join(parts[1:])
    if parts[0] not in names and "*" not in names:
        beside = {path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set()
        candidates = sorted(name for name in {*names, *beside} if not name.startswith("_"))
        return Found(False, ".".join(module), parts[0], member, tuple(candidates))
    origin = names.get(parts[0])
    if isinstance(origin, str) and origin.startswith(KNOWN):
        return find(".".join(filter(None, [origin, member])))
    if first not in KNOWN or not isinstance(origin, Definition):
        return Found(True)
    marked = first == OWN and _is_marked(origin)
    if not member:
        return Found(True, arguments=_arguments(origin, names), loadable=marked)
    methods = {node.name: node for node in origin.body if isinstance(node, ast.FunctionDef)}
    if member not in methods:
        return Found(False, ".".join([*module, parts[0]]), member, "", tuple(methods))
    marked = marked and _is_marked(methods[member])
    return Found(True, arguments=_arguments(methods[member], names), loadable=marked)


def _is_marked(node: Definition) -> bool:
    return any(ast.unparse(decorator).startswith("loadable(") for decorator in node.decorator_list)


def class_attribute(target: str, name: str) -> Any:
    """The literal that a class, by its module and its name, annotates and assigns to `name` in its body; else None."""
    module, _, class_name = target.rpartition(".")
    spec = importlib.util.find_spec(module)
    definition = _names(Path(spec.origin)).get(class_name) if spec and spec.origin else None
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return ast.literal_eval(node.value)
    return None


def _inner(file: Path, parts: list[str]) -> Path | None:
    """The file of module parts[0] in the package of `file`; None if there is none, or a name hides it."""
    if not parts or file.name != "__init__.py" or (len(parts) == 1 and parts[0] in _names(file)):
        return None
    candidates = (file.parent / parts[0] / "__init__.py", file.parent / f"{parts[0]}.py")
    return next((path for path in candidates if path.is_file()), None)


@lru_cache(maxsize=64)
def _names(file: Path) -> dict[str, Definition | str | None]:
    """Names at the top level of a source file: their definition, or where they are imported from; "*": any name."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.suffix == ".py" else None
    except (OSError, SyntaxError, ValueError):
        tree = None  # the import will say it better
    return {"*": None} if tree is None else dict(_top_level(tree.body))


def _top_level(body: list[ast.stmt]) -> Iterator[tuple[str, Definition | str | None]]:
    for node in body:
        if isinstance(node, Definition):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name.split(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for place in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = place.elts if isinstance(place, ast.Tuple | ast.List) else [place]
                yield from ((name.id, None) for name in names if isinstance(name, ast.Name))
        else:  # if, try, with
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []))


def _arguments(node: Definition, names: dict[str, Definition | str | None]) -> tuple[str, ...] | None:
    """The arguments of a function or class, with inherited ones; None if a part of them cannot be read."""
    if isinstance(node, ast.FunctionDef):
        return None if node.args.kwarg else _written(node)
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if init is not None and not init.args.kwarg:
        return _written(init)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return tuple(part.target.id for part in node.body if isinstance(part, ast.AnnAssign))
    base = ast.unparse(node.bases[0]) if node.bases else "object"
    above = names.get(base)
    if base in ("object", "nn.Module"):
        inherited: tuple[str, ...] | None = ()
    elif isinstance(above, str):
        inherited = find(above).arguments
    else:
        inherited = _arguments(above, names) if isinstance(above, Definition) else None
    return inherited if init is None or inherited is None else (*_written(init), *inherited)


def _written(function: ast.FunctionDef) -> tuple[str, ...]:
    every = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return tuple(argument.arg for argument in every if argument.arg not in ("self", "cls"))
