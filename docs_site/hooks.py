"""Hooks of MkDocs: the generated pages, and what the Markdown files of the repository need on the site.

- index.md is README.md.
- reference/api/ROOM.md shows the public names of a room, by mkdocstrings.
- reference/configuration/GROUP.md lists the files of conf/GROUP.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, normpath
from typing import Any

from configuration import Pages
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/consistency_models"
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
NOT_RUN = re.compile(r"<!-- not run: (.*?) -->", re.DOTALL)
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def on_config(config: Any) -> Any:
    """Add the generated pages to the navigation."""
    pages = Pages(ROOT)
    config.generated = {"index.md": _home()}
    config.generated |= {f"reference/api/{room}.md": page for room, page in _rooms()}
    config.generated |= {f"reference/configuration/{name}.md": pages.page(name) for name in pages.groups()}
    api, settings = (
        [{name.rpartition("/")[2].removesuffix(".md"): name} for name in config.generated if part in name]
        for part in ("reference/api/", "reference/configuration/")
    )
    config.nav.append({"Reference": [{"Python": api}, {"Configuration": settings}]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    for name, content in config.generated.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Name files outside docs/ instead of linking to them, and show which commands no test runs."""

    def linked(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path = normpath(f"docs/{dirname(page.file.src_uri)}/{target.partition('#')[0]}")
        if path == "README.md":
            return f"[{text}]({target.replace('../README.md', 'index.md')})"
        if path.startswith("docs/") or not (ROOT / path).exists():
            return found[0]
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return NOT_RUN.sub(r"*No test runs the next commands: \1.*\n", LINK.sub(linked, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Link the papers."""
    return ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', html)


def _home() -> str:
    """README.md with links that start in docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!docs/|[a-z]+:|#)", "](../", text)
    return text.replace("](docs/", "](")


def _rooms() -> Iterator[tuple[str, str]]:
    """Each room with public names, and its page. Modules, and functions with the name of their module, follow."""
    yield PACKAGE.name, f"# {PACKAGE.name}\n\n::: {PACKAGE.name}\n"
    for file in sorted([*PACKAGE.glob("*/__init__.py"), *PACKAGE.glob("[a-z]*.py")]):
        room = file.parent.name if file.stem == "__init__" else file.stem
        modules = [(name, PACKAGE / f"{room}/{name}.py") for name in _public(file)]
        alike = [f"{name}.{name}" if name in _public(module) else name for name, module in modules if module.exists()]
        rest = [f"::: {PACKAGE.name}.{room}.{name}\n    options: {{show_root_heading: true}}\n" for name in alike]
        values = file.stem != "__init__"  # a module may define values, such as types, that have no docstring
        shown = f"::: {PACKAGE.name}.{room}\n    options: {{show_if_no_docstring: {str(values).lower()}}}\n"
        if modules:
            yield room, "\n".join([f"# {room}\n\n{shown}", *rest])


def _public(file: Path) -> list[str]:
    """`__all__` of a module, or an empty list."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []
