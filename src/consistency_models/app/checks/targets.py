"""Lookup of a `_target_`: existence, arguments with their types, and facts, read from the source.

Nothing is imported. A type is the argument's annotation (see `consistency_models.values`); a fact is an attribute of
the class that is written as a literal, such as `needs_teacher = True`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from consistency_models.values import MODULES, Unknown, evaluate

__all__ = ["Found", "fact", "find"]

NOT_READ = {"torch", "lightning", *sys.stdlib_module_names}
"""Large packages without facts and types of values."""

Definition = ast.ClassDef | ast.FunctionDef
Origin = Definition | ast.expr | str | None
"""A definition, the expression of an assignment, the dotted name of an import, or None for other statements."""


@dataclass(frozen=True)
class Found:
    """The result of the lookup of a dotted name.

    Args:
        exists: the whole name was found.
        module: the part that was found, dotted.
        missing: the part that was not found in `module`.
        rest: the part after `missing`.
        candidates: the names in `module`.
        arguments: of a class or function, with their types; None if they are unknown.
        facts: attributes of the class, or of a function with `values.facts`.
        loadable: a file may name it: the definition is of this package and has the mark of `consistency_models.trust`.
    """

    exists: bool
    module: str = ""
    missing: str = ""
    rest: str = ""
    candidates: tuple[str, ...] = ()
    arguments: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    loadable: bool = False


def fact(object_config: Any, name: str, default: Any = None) -> Any:
    """Return a fact of the class of an object's configuration; `default` if the class has no such fact."""
    return find(str((object_config or {}).get("_target_"))).facts.get(name, default)


@lru_cache(maxsize=512)
def find(target: str) -> Found:
    """Look up a dotted name: package, modules, and a definition or an import of the last module."""
    located = _locate(target)
    if located is None or "." not in target:
        return Found(False, missing=target)
    source, parts = located
    if not parts:
        return Found(False, source.name, "a class or function")
    names, member = source.names, ".".join(parts[1:])
    if parts[0] not in names and "*" not in names:
        beside = {path.stem for path in source.file.parent.iterdir()} if source.is_package else set()
        candidates = sorted(name for name in {*names, *beside} if not name.startswith("_"))
        return Found(False, source.name, parts[0], member, tuple(candidates))
    origin = names.get(parts[0])
    if isinstance(origin, str):
        imported = find(origin)
        return (
            find(f"{origin}.{member}") if imported.exists and member else imported if imported.exists else Found(True)
        )
    if not isinstance(origin, Definition):
        return Found(True)
    facts, marked = source.facts(origin), target.startswith("consistency_models.") and _is_marked(origin)
    if not member:
        return Found(True, arguments=source.arguments(origin), facts=facts, loadable=marked)
    methods = {node.name: node for node in origin.body if isinstance(node, ast.FunctionDef)}
    if member in methods:
        marked = marked and _is_marked(methods[member])
        return Found(True, arguments=source.arguments(methods[member]), facts=facts, loadable=marked)
    if isinstance(origin, ast.ClassDef) and (origin.bases or member in facts):
        return Found(True, facts=facts)  # may be inherited
    return Found(False, f"{source.name}.{parts[0]}", member, "", tuple(methods))


def _is_marked(node: Definition) -> bool:
    return any(ast.unparse(decorator).startswith("loadable(") for decorator in node.decorator_list)


@lru_cache(maxsize=1024)
def _locate(target: str) -> tuple[_Source, tuple[str, ...]] | None:
    """Return the last module of a dotted name, and the names after it."""
    first, *parts = target.split(".")
    try:
        spec = importlib.util.find_spec(first) if first else None
    except ValueError:
        spec = None
    if spec is None or (spec.origin is None and not (parts and spec.submodule_search_locations)):
        return None
    if spec.origin is None:  # a namespace package
        name, folders = f"{first}.{parts.pop(0)}", map(Path, spec.submodule_search_locations or ())
        file = next((path for folder in folders if (path := _module(folder, name.rpartition(".")[2]))), None)
    else:
        name, file = first, Path(spec.origin)
    source = None if file is None else _read(file, name)
    while source and parts and source.is_package and not (len(parts) == 1 and parts[0] in source.names):
        if (file := _module(source.file.parent, parts[0])) is None:
            break
        source = _read(file, f"{source.name}.{parts.pop(0)}")
    return (source, tuple(parts)) if source else None


def _module(folder: Path, name: str) -> Path | None:
    """Return the file of a module or package in a folder."""
    return next((path for path in (folder / name / "__init__.py", folder / f"{name}.py") if path.is_file()), None)


@dataclass(frozen=True)
class _Source:
    """The source of a module, which is not imported.

    Args:
        file: the file of the source.
        name: dotted.
        names: names at the top level; "*": any name.
    """

    file: Path
    name: str
    names: dict[str, Origin]

    @property
    def is_package(self) -> bool:
        return self.file.name == "__init__.py"

    def resolve(self, name: str) -> Any:
        """Return the object of a name in an annotation; `Unknown` for a class."""
        origin = self.names.get(name)
        if isinstance(origin, ast.expr):
            return evaluate(ast.unparse(origin), self.resolve)
        if not isinstance(origin, str):
            return Unknown
        return _imported(origin)

    def found(self, base: ast.expr) -> Found:
        """Look up the arguments and facts of a base class."""
        first, _, rest = ast.unparse(base).partition(".")
        origin = self.names.get(first)
        if isinstance(origin, ast.ClassDef) and not rest:
            return Found(True, arguments=self.arguments(origin), facts=self.facts(origin))
        return find(f"{origin}.{rest}".rstrip(".")) if isinstance(origin, str) else Found(True)

    def facts(self, node: Definition) -> dict[str, Any]:
        """Return the literal attributes of a class, including inherited ones; for a function, those of `facts`."""
        if isinstance(node, ast.FunctionDef):
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
            given = [key for call in calls if ast.unparse(call.func).endswith("facts") for key in call.keywords]
            return {str(key.arg): ast.literal_eval(key.value) for key in given}
        inherited: dict[str, Any] = {}
        for base in reversed(node.bases):
            if str(self.names.get(ast.unparse(base).partition(".")[0])).partition(".")[0] not in NOT_READ:
                inherited |= self.found(base).facts
        return inherited | dict(_literals(node.body))

    def arguments(self, node: Definition) -> dict[str, Any] | None:
        """Return the arguments of a function or class, including inherited ones; None if some cannot be read."""
        if isinstance(node, ast.FunctionDef):
            return None if node.args.kwarg else self._written(node)
        init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
        if init is not None and not init.args.kwarg:
            return self._written(init)
        decorators = {ast.unparse(decorator).split("(")[0].rpartition(".")[2] for decorator in node.decorator_list}
        if init is None and "dataclass" in decorators:
            fields = [
                part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
            ]
            return {part.target.id: self._kind(part.annotation, part.value) for part in fields}
        if decorators - {"loadable", "checked", "final"} or node.keywords or len(node.bases) > 1:
            return None
        if node.bases and ast.unparse(node.bases[0]) not in ("object", "nn.Module"):
            inherited = self.found(node.bases[0]).arguments
        else:
            inherited = {} if init is None or node.bases else None  # **arguments of a class without a base are read
        return inherited if init is None or inherited is None else self._written(init) | inherited

    def _written(self, function: ast.FunctionDef) -> dict[str, Any]:
        every, named = function.args.posonlyargs + function.args.args, function.args.kwonlyargs
        defaults = [None] * (len(every) - len(function.args.defaults)) + list(function.args.defaults)
        pairs = [*zip(every, defaults), *zip(named, function.args.kw_defaults)]
        return {
            each.arg: self._kind(each.annotation, value) for each, value in pairs if each.arg not in ("self", "cls")
        }

    def _kind(self, annotation: ast.expr | None, default: ast.expr | None) -> Any:
        """Return the type of an annotation; a default of None makes None allowed."""
        if annotation is None:
            return Any
        quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
        kind = evaluate(annotation.value if quoted else ast.unparse(annotation), self.resolve)
        return Optional[kind] if isinstance(default, ast.Constant) and default.value is None else kind  # noqa: UP045


@lru_cache(maxsize=1024)
def _imported(origin: str) -> Any:
    """Return the object of an imported name in an annotation."""
    module, _, attribute = origin.rpartition(".")
    if origin in MODULES:
        return importlib.import_module(origin)
    if module in MODULES:
        return getattr(importlib.import_module(module), attribute, Unknown)
    if origin.partition(".")[0] in NOT_READ:
        return Unknown
    located = _locate(origin)
    if located is None or located[1] != (attribute,) or located[0].names.get(attribute) == origin:
        return Unknown
    return located[0].resolve(attribute)


@lru_cache(maxsize=256)
def _read(file: Path, name: str) -> _Source:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.suffix == ".py" else None
    except (OSError, SyntaxError, ValueError):
        tree = None  # the import reports the error
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return _Source(file, name, {"*": None} if tree is None else dict(_top_level(tree.body, package)))


def _top_level(body: list[ast.stmt], package: str) -> Iterator[tuple[str, Origin]]:
    for node in body:
        if isinstance(node, Definition):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join(filter(None, [*above, node.module]))
            yield from ((alias.asname or alias.name, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2 for alias in node.names
            )
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from _assigned(node)
        else:  # if, try, with
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []), package)


def _assigned(node: ast.Assign | ast.AnnAssign) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield names and the expressions assigned to them."""
    for place in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(place, ast.Name):
            yield place.id, node.value
        elif isinstance(place, ast.Tuple | ast.List):
            values = node.value.elts if isinstance(node.value, ast.Tuple | ast.List) else [None] * len(place.elts)
            yield from ((each.id, value) for each, value in zip(place.elts, values) if isinstance(each, ast.Name))


def _literals(body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    for node in body:
        for name, value in _assigned(node) if isinstance(node, ast.Assign | ast.AnnAssign) else ():
            try:
                yield name, ast.literal_eval(value)
            except (ValueError, TypeError):
                continue
