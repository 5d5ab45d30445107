"""Docstrings of this project as Markdown: formulas keep their characters and their lines.

The docstrings are plain text. In Markdown a star or an underscore would begin emphasis, and the lines of a table in
plain text would become one paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

__all__ = ["PlainText"]

ALIGNED = re.compile(r"\S {3,}\S")
MARKUP = re.compile(r"[*\\]|(?<!\w)_|_(?!\w)")
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): ")


class PlainText(griffe.Extension):
    """Escape the markup of Markdown in docstrings; paragraphs with aligned columns become code.

    A description of several arguments (`a, b: text`) is repeated for each of them. The docstring of a module with one
    public class, which holds the equations of the class, begins the docstring of the class.
    """

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change all docstrings of the package."""
        for module in _modules(pkg):
            public = [name for name in module.exports or () if name in module.classes]
            if module.docstring and len(public) == 1 and (of_class := module.classes[public[0]].docstring):
                of_class.value = f"{module.docstring.value}\n\n{of_class.value}"
            for each in _objects(module):
                if each.docstring:
                    each.docstring.value = "\n\n".join(map(_markdown, each.docstring.value.split("\n\n")))


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for each in module.modules.values():
        if not each.is_alias:
            yield from _modules(each)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """The object and its members, without the modules in it."""
    yield parent
    for each in parent.members.values():
        if not each.is_alias and not each.is_module:
            yield from _objects(each)


def _markdown(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if all(line.startswith("    ") for line in lines):
        return paragraph
    if lines[0] == "Args:":
        lines = [one for line in _entries(lines) for one in line]
    elif all(ALIGNED.search(line) for line in lines):
        return "\n".join(f"    {line}" for line in lines)
    parts = re.split(r"(`[^`\n]+`)", "\n".join(lines))
    return "".join(one if one.startswith("`") else MARKUP.sub(r"\\\g<0>", one).replace("<", "&lt;") for one in parts)


def _entries(lines: list[str]) -> Iterator[list[str]]:
    """The lines of each argument, with its continuation lines."""
    entry: list[str] = []
    for line in [*lines, "    end"]:
        if entry and not line.startswith("     "):
            several = SEVERAL.match(entry[0])
            names = several[2].split(", ") if several else []
            yield from ([SEVERAL.sub(rf"\g<1>{name}: ", entry[0]), *entry[1:]] for name in names or [""])
            entry = []
        entry.append(line)
